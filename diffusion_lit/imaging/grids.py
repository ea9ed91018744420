"""Conversion between uint8 images, floats in [-1, 1] and PIL; grids and GIFs."""

from collections.abc import Sequence
from pathlib import Path
from typing import IO

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from diffusion_lit.imaging.fonts import find_font, to_drawable

LABEL_SIZE = 12  # px, of text
GRID_GAP = 2  # px, between images
MIN_IMAGE_SIZE = 64  # px, up to which small images are enlarged by a whole factor
SQUARE = 4  # px, of the checkerboard that shows through transparent pixels


def to_float(image: Tensor) -> Tensor:
    """Return uint8 (..., C, H, W) as float32 in [-1, 1]."""
    return image.float().div(127.5).sub(1.0)


def to_uint8(x: Tensor) -> Tensor:
    """Return float in [-1, 1] as uint8, clipped; the exact inverse of `to_float`."""
    return x.add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def harden_alpha(images: Tensor) -> Tensor:
    """Return uint8 RGBA images (..., 4, H, W) with alpha 0 (and black) below 128, else 255; other images unchanged."""
    if images.shape[-3] != 4:
        return images
    is_opaque = images[..., 3:, :, :] > 127
    return torch.cat([images[..., :3, :, :], torch.full_like(images[..., 3:, :, :], 255)], dim=-3) * is_opaque


def to_pil(image: Tensor) -> Image.Image:
    """Return uint8 (C, H, W) of 1, 3 or 4 channels as an image of mode L, RGB or RGBA."""
    array = image.permute(1, 2, 0).contiguous().cpu().numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def draw_grid(images: Tensor, columns: int, row_names: Sequence[str] = (), title: str = "") -> Image.Image:
    """Draw images uint8 (N, C, H, W) row by row, small ones enlarged by an integer factor.

    Row names are left of their rows, the title is above. The mode follows from C: L, RGB or
    RGBA.
    """
    n, _, height, width = images.shape
    zoom = max(1, MIN_IMAGE_SIZE // max(height, width))
    cell_h, cell_w, rows = height * zoom + GRID_GAP, width * zoom + GRID_GAP, -(-n // columns)
    row_names, title = [to_drawable(" ".join(name.splitlines())) for name in row_names], to_drawable(title)
    fonts = {text: _load_font(text) for text in (title, *row_names)}
    left = max([int(fonts[name].getlength(name)) + 8 for name in row_names], default=0)
    top = LABEL_SIZE + 8 if title else 0
    title_width = int(fonts[title].getlength(title)) + 8 if title else 0
    size = left + max(columns * cell_w, title_width) + GRID_GAP, top + rows * cell_h + GRID_GAP
    canvas = Image.new(to_pil(images[0]).mode, size, "white")
    draw = ImageDraw.Draw(canvas)
    if title:
        draw.text((left + GRID_GAP, 4), title, fill="black", font=fonts[title])
    for k in range(n):
        row, column = divmod(k, columns)
        tile = to_pil(images[k]).resize((width * zoom, height * zoom), Image.Resampling.NEAREST)
        canvas.paste(tile, (left + GRID_GAP + column * cell_w, top + GRID_GAP + row * cell_h))
    for row, name in enumerate(row_names[:rows]):
        draw.text((4, top + row * cell_h + (cell_h - LABEL_SIZE) // 2), name, fill="black", font=fonts[name])
    return canvas


def _load_font(text: str):
    other = find_font(text)
    return ImageFont.truetype(other[1], LABEL_SIZE) if other else ImageFont.load_default(size=LABEL_SIZE)


def hstack_images(images: Sequence[Image.Image], gap: int = 12) -> Image.Image:
    """Return images of one mode in a row, top-aligned, on white."""
    width = sum(image.width for image in images) + gap * (len(images) - 1)
    canvas = Image.new(images[0].mode, (width, max(image.height for image in images)), "white")
    x = 0
    for image in images:
        canvas.paste(image, (x, 0))
        x += image.width + gap
    return canvas


def add_checkerboard(image: Image.Image) -> Image.Image:
    """Return an RGBA image on light squares, which show where it is transparent; others unchanged."""
    if image.mode != "RGBA":
        return image
    y, x = torch.meshgrid(torch.arange(image.height), torch.arange(image.width), indexing="ij")
    is_gray = (y // SQUARE + x // SQUARE) % 2 == 1
    board = torch.full((4, image.height, image.width), 255, dtype=torch.uint8)
    board[:3] = torch.where(is_gray, 235, 255)
    return Image.alpha_composite(to_pil(board), image)


def save_gif(frames: Sequence[Image.Image], path: Path | IO[bytes], frame_ms: int = 100, hold_ms: int = 1500) -> None:
    """Write an endless GIF whose last frame is shown for `hold_ms`; smaller frames are padded with white."""
    size = max(frame.width for frame in frames), max(frame.height for frame in frames)
    palettes = [_quantize(_pad(frame, size)) for frame in frames]
    durations = [frame_ms] * (len(palettes) - 1) + [hold_ms]
    palettes[0].save(path, format="GIF", save_all=True, append_images=palettes[1:], duration=durations, loop=0)


def _pad(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    canvas = Image.new(image.mode, size, "white")
    canvas.paste(image, (0, 0))
    return canvas


def _quantize(image: Image.Image) -> Image.Image:
    """Return what a GIF can hold: gray as it is, colors on white as the 256 nearest, without dither."""
    if image.mode == "L":
        return image
    if image.mode == "RGBA":
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image)
        image = canvas.convert("RGB")
    return image.quantize(256, dither=Image.Dither.NONE)
