"""How images are displayed: Minecraft skins as figures, others as they are.

A skin unfolds the boxes of a body, each twice: the body itself, and an outer layer
of hat, jacket, sleeves and trousers. See https://minecraft.wiki/w/Skin for the
layout.
"""

from typing import NamedTuple

import torch
from torch import Tensor

HEIGHT, WIDTH = 32, 16  # px, of a figure from one side
FIGURE_GAP = 2  # px, between front and back, and at the sides
ZOOM = 2  # makes a figure from both sides about as large as its skin


class BodyPart(NamedTuple):
    """A box of the body, in px; corners are (left, top).

    Attributes:
        width: of the box.
        height: of the box.
        front: corner of its front in the skin.
        back: corner of its back in the skin.
        outer_front: corner of its front in the outer layer.
        outer_back: corner of its back in the outer layer.
        place: corner of its front in the figure.
    """

    width: int
    height: int
    front: tuple[int, int]
    back: tuple[int, int]
    outer_front: tuple[int, int]
    outer_back: tuple[int, int]
    place: tuple[int, int]


BODY_PARTS = {
    "head": BodyPart(8, 8, (8, 8), (24, 8), (40, 8), (56, 8), (4, 0)),
    "body": BodyPart(8, 12, (20, 20), (32, 20), (20, 36), (32, 36), (4, 8)),
    "right arm": BodyPart(4, 12, (44, 20), (52, 20), (44, 36), (52, 36), (0, 8)),
    "left arm": BodyPart(4, 12, (36, 52), (44, 52), (52, 52), (60, 52), (12, 8)),
    "right leg": BodyPart(4, 12, (4, 20), (12, 20), (4, 36), (12, 36), (4, 20)),
    "left leg": BodyPart(4, 12, (20, 52), (28, 52), (4, 52), (12, 52), (8, 20)),
}


# Faces of an unfolded limb, each 4 px wide: (left, top, height), and the left of the face that it mirrors on the other
# limb. In order: top, bottom, outside and inside (these change places), front, back.
LIMB_FACES = {(4, 0, 4): 4, (8, 0, 4): 8, (0, 4, 12): 8, (8, 4, 12): 0, (4, 4, 12): 4, (12, 4, 12): 12}


def render_images(images: Tensor, render: str) -> Tensor:
    """Return images uint8 (..., C, H, W) for display; `render` is `none` or `skin`."""
    return RENDERS[render](images)


def render_skins(skins: Tensor, outer: bool = True, threshold: float = 0.5) -> Tensor:
    """Return front and back of skins uint8 (..., 4, 64, 64) side by side, (..., 4, 64, 76).

    For the arguments see `render_skin_side`.
    """
    gap = skins.new_zeros(*skins.shape[:-2], HEIGHT, FIGURE_GAP)
    front, behind = (render_skin_side(skins, back, outer, threshold) for back in (False, True))
    both = torch.cat([gap, front, gap, behind, gap], dim=-1)
    return both.repeat_interleave(ZOOM, dim=-2).repeat_interleave(ZOOM, dim=-1)


def render_skin_side(skins: Tensor, back: bool = False, outer: bool = True, threshold: float = 0.5) -> Tensor:
    """Return skins from one side, uint8 (..., 4, 32, 16).

    Args:
        skins: uint8 (..., 4, 64, 64), or (..., 4, 32, 64) of the old layout.
        back: from behind, where the right arm is on the right.
        outer: with the outer layer over the body.
        threshold: pixels with alpha above this share of 255 are opaque, others transparent.

    Raises:
        ValueError: for other shapes.
    """
    if skins.shape[-3:] == (4, 32, 64):
        skins = convert_old_layout(skins)
    if skins.shape[-3:] != (4, 64, 64):
        raise ValueError(f"a skin must be RGBA of 64x64 px, not of shape {tuple(skins.shape[-3:])}")
    is_opaque = skins[..., 3:, :, :] > threshold * 255
    skins = torch.cat([skins[..., :3, :, :], torch.full_like(skins[..., 3:, :, :], 255)], dim=-3) * is_opaque
    canvas = skins.new_zeros(*skins.shape[:-2], HEIGHT, WIDTH)
    for part in BODY_PARTS.values():
        left, top = part.place
        if back:
            left = WIDTH - left - part.width
        tile = _cut(skins, part.back if back else part.front, part)
        if outer:
            over = _cut(skins, part.outer_back if back else part.outer_front, part)
            tile = torch.where(over[..., 3:, :, :] > 0, over, tile)
        canvas[..., top : top + part.height, left : left + part.width] = tile
    return canvas


def convert_old_layout(skins: Tensor) -> Tensor:
    """Return skins (..., 4, 32, 64) as (..., 4, 64, 64).

    Left limbs mirror right ones; only the head has an outer layer.
    """
    new = torch.cat([skins, torch.zeros_like(skins)], dim=-2)
    for right, left in (((40, 16), (32, 48)), ((0, 16), (16, 48))):  # corners of an arm and of a leg, unfolded
        for (x, y, height), source in LIMB_FACES.items():
            u, v = right[0] + source, right[1] + y
            face = skins[..., v : v + height, u : u + 4]
            u, v = left[0] + x, left[1] + y
            new[..., v : v + height, u : u + 4] = face.flip(-1)
    return new


def _cut(skins: Tensor, corner: tuple[int, int], part: BodyPart) -> Tensor:
    left, top = corner
    return skins[..., top : top + part.height, left : left + part.width]


RENDERS = {"none": lambda images: images, "skin": render_skins}
