"""Between uint8 pictures and float tensors in [-1, 1]; grids and GIFs of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import IO

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

LABEL_SIZE = 12  # px, text beside rows and above columns
SQUARE = 4  # px, of the checkerboard that shows through transparent pixels


def to_float(image: Tensor) -> Tensor:
    """uint8 (..., C, H, W) to float32 in [-1, 1]."""
    return image.float().div(127.5).sub(1.0)


def to_uint8(x: Tensor) -> Tensor:
    """Float in [-1, 1] (values outside are clipped) to uint8; the exact inverse of `to_float`."""
    return x.add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def to_pil(image: Tensor) -> Image.Image:
    """uint8 (C, H, W) with 1, 3 or 4 channels to a picture of mode L, RGB or RGBA."""
    array = image.permute(1, 2, 0).contiguous().cpu().numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def grid(images: Tensor, columns: int, row_names: Sequence[str] = (), title: str = "", gap: int = 2) -> Image.Image:
    """One picture of many: uint8 (N, C, H, W) row by row, small images enlarged by a whole factor.

    Row names stand left of their rows, the title above. The mode (L, RGB, RGBA) is that of the images.
    """
    n, channels, height, width = images.shape
    zoom = max(1, 40 // max(height, width))
    cell_h, cell_w, rows = height * zoom + gap, width * zoom + gap, -(-n // columns)
    font = ImageFont.load_default(size=LABEL_SIZE)
    left = max([int(font.getlength(name)) + 8 for name in row_names], default=0)
    top = LABEL_SIZE + 8 if title else 0
    title_width = int(font.getlength(title)) + 8 if title else 0
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    white = (255,) * channels if channels > 1 else 255
    ink = (0, 0, 0, 255)[:channels] if channels > 1 else 0
    canvas = Image.new(mode, (left + max(columns * cell_w, title_width) + gap, top + rows * cell_h + gap), white)
    draw = ImageDraw.Draw(canvas)
    if title:
        draw.text((left + gap, 4), title, fill=ink, font=font)
    for k in range(n):
        row, column = divmod(k, columns)
        tile = to_pil(images[k]).resize((width * zoom, height * zoom), Image.Resampling.NEAREST)
        canvas.paste(tile, (left + gap + column * cell_w, top + gap + row * cell_h))
    for row, name in enumerate(row_names[:rows]):
        draw.text((4, top + row * cell_h + (cell_h - LABEL_SIZE) // 2), name, fill=ink, font=font)
    return canvas


def beside(pictures: Sequence[Image.Image], gap: int = 12) -> Image.Image:
    """Pictures of one mode in one row, top-aligned, on white."""
    width = sum(p.width for p in pictures) + gap * (len(pictures) - 1)
    canvas = Image.new(pictures[0].mode, (width, max(p.height for p in pictures)), "white")
    x = 0
    for picture in pictures:
        canvas.paste(picture, (x, 0))
        x += picture.width + gap
    return canvas


def on_checkerboard(picture: Image.Image) -> Image.Image:
    """An RGBA picture on light squares, so that what is transparent can be seen as that; the mode stays, others too."""
    if picture.mode != "RGBA":
        return picture
    board = Image.new("RGBA", (-(-picture.width // SQUARE), -(-picture.height // SQUARE)), (255, 255, 255, 255))
    board.putdata([(235,) * 3 + (255,) if (k // board.width + k % board.width) % 2 else (255,) * 4
                   for k in range(board.width * board.height)])  # fmt: skip
    board = board.resize((board.width * SQUARE, board.height * SQUARE), Image.Resampling.NEAREST)
    return Image.alpha_composite(board.crop((0, 0, *picture.size)), picture)


def save_gif(frames: Sequence[Image.Image], path: Path | IO[bytes], frame_ms: int = 100, hold_ms: int = 1500) -> None:
    """An endless GIF; the last frame is held so that the result can be looked at. Smaller ones are put on white."""
    size = max(frame.width for frame in frames), max(frame.height for frame in frames)
    palettes = [_with_palette(_filled(frame, size)) for frame in frames]
    durations = [frame_ms] * (len(palettes) - 1) + [hold_ms]
    palettes[0].save(path, format="GIF", save_all=True, append_images=palettes[1:], duration=durations, loop=0)


def _filled(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    canvas = Image.new(picture.mode, size, "white")
    canvas.paste(picture, (0, 0))
    return canvas


def _with_palette(picture: Image.Image) -> Image.Image:
    """What a GIF can hold: grey as it is; colours on white, the 256 nearest, no dither (it looks like noise)."""
    if picture.mode == "L":
        return picture
    if picture.mode == "RGBA":
        canvas = Image.new("RGBA", picture.size, "white")
        canvas.alpha_composite(picture)
        picture = canvas.convert("RGB")
    return picture.quantize(256, dither=Image.Dither.NONE)
