"""What pictures look like where they are shown: skins of the Minecraft layout as figures, others as they are.

A skin unfolds the boxes of a body, each twice: the body itself, and an outer layer of hat, jacket, sleeves and
trousers. See https://minecraft.wiki/w/Skin for the layout.
"""

from typing import NamedTuple

import torch
from torch import Tensor

HEIGHT, WIDTH = 32, 16  # px, of a figure from one side
GAP = 2  # px, between front and back, and at the sides
ZOOM = 2  # a figure from both sides is about as large as the skin it is made of


class Part(NamedTuple):
    """A box of the body: size, (left, top) of its front and back in the skin, and of both in the outer layer, and the
    place (left, top) of its front in the figure.
    """

    width: int
    height: int
    front: tuple[int, int]
    back: tuple[int, int]
    outer_front: tuple[int, int]
    outer_back: tuple[int, int]
    place: tuple[int, int]


PARTS = {
    "head": Part(8, 8, (8, 8), (24, 8), (40, 8), (56, 8), (4, 0)),
    "body": Part(8, 12, (20, 20), (32, 20), (20, 36), (32, 36), (4, 8)),
    "right arm": Part(4, 12, (44, 20), (52, 20), (44, 36), (52, 36), (0, 8)),
    "left arm": Part(4, 12, (36, 52), (44, 52), (52, 52), (60, 52), (12, 8)),
    "right leg": Part(4, 12, (4, 20), (12, 20), (4, 36), (12, 36), (4, 20)),
    "left leg": Part(4, 12, (20, 52), (28, 52), (4, 52), (12, 52), (8, 20)),
}


# The faces of an unfolded limb, each 4 px wide: left, top and height, and the left of the one that it mirrors on the
# other limb: top, bottom, outside and inside (which change places), front, back.
LIMB_FACES = {(4, 0, 4): 4, (8, 0, 4): 8, (0, 4, 12): 8, (8, 4, 12): 0, (4, 4, 12): 4, (12, 4, 12): 12}


def shown(images: Tensor, render: str) -> Tensor:
    """Pictures uint8 (..., C, H, W) as grids show them; `render` is a key of the data, `none` or `skin`."""
    return RENDERS[render](images)


def figures(skins: Tensor, outer: bool = True, threshold: float = 0.5) -> Tensor:
    """Front and back beside each other: uint8 (..., 4, 64, 64) to (..., 4, 64, 76), enlarged by a whole factor; see
    `figure`.
    """
    gap = skins.new_zeros(*skins.shape[:-2], HEIGHT, GAP)
    front, behind = (figure(skins, back, outer, threshold) for back in (False, True))
    both = torch.cat([gap, front, gap, behind, gap], dim=-1)
    return both.repeat_interleave(ZOOM, dim=-2).repeat_interleave(ZOOM, dim=-1)


def figure(skins: Tensor, back: bool = False, outer: bool = True, threshold: float = 0.5) -> Tensor:
    """Skins from one side: uint8 (..., 4, 64, 64) to (..., 4, 32, 16), pixel by pixel.

    Args:
        back: from behind, where the right arm is on the right.
        outer: with the outer layer over the body.
        threshold: a pixel is there, fully, where its alpha is more than this share of 255; else it is not there at all.

    Raises:
        ValueError: for other shapes, but for the old 64x32 layout, where left limbs are mirrored right ones.
    """
    if skins.shape[-3:] == (4, 32, 64):
        skins = from_old_layout(skins)
    if skins.shape[-3:] != (4, 64, 64):
        raise ValueError(f"a skin is RGBA of 64x64 px, not {tuple(skins.shape[-3:])}")
    there = skins[..., 3:, :, :] > threshold * 255
    skins = torch.cat([skins[..., :3, :, :], torch.full_like(skins[..., 3:, :, :], 255)], dim=-3) * there
    canvas = skins.new_zeros(*skins.shape[:-2], HEIGHT, WIDTH)
    for part in PARTS.values():
        left, top = part.place
        if back:
            left = WIDTH - left - part.width
        tile = _cut(skins, part.back if back else part.front, part)
        if outer:
            over = _cut(skins, part.outer_back if back else part.outer_front, part)
            tile = torch.where(over[..., 3:, :, :] > 0, over, tile)
        canvas[..., top : top + part.height, left : left + part.width] = tile
    return canvas


def from_old_layout(skins: Tensor) -> Tensor:
    """Skins (..., 4, 32, 64) as (..., 4, 64, 64): left limbs mirror right ones, only the head has an outer layer."""
    new = torch.cat([skins, torch.zeros_like(skins)], dim=-2)
    for right, left in (((40, 16), (32, 48)), ((0, 16), (16, 48))):  # corners of an arm and of a leg, unfolded
        for (x, y, height), source in LIMB_FACES.items():
            u, v = right[0] + source, right[1] + y
            face = skins[..., v : v + height, u : u + 4]
            u, v = left[0] + x, left[1] + y
            new[..., v : v + height, u : u + 4] = face.flip(-1)
    return new


def _cut(skins: Tensor, corner: tuple[int, int], part: Part) -> Tensor:
    left, top = corner
    return skins[..., top : top + part.height, left : left + part.width]


RENDERS = {"none": lambda images: images, "skin": figures}
