"""Palettes: the colors of a set of images, of a file or of a command line, and snapping images to them in OKLab."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from diffusion_lit.system.errors import ConfigError
from diffusion_lit.system.files import write_text_atomically

MAX_COLORS = 256
PALETTE_FILE = "palette.hex"  # in a run: the colors of its training images, one a line
BLOCK = 1024  # images, or colors, that are handled at once
# #1a1c2c and #fff of CSS, 1a1c2c, and ff1a1c2c of paint.net; without transparency
HEX_COLOR = re.compile(r"(?:#|ff)?([0-9a-f]{6})|#([0-9a-f]{6})ff|#([0-9a-f]{3})", re.IGNORECASE)
GIMP_COLOR = re.compile(r"\s*(\d{1,3})\s+(\d{1,3})\s+(\d{1,3})\b.*")
SRGB = np.arange(256) / 255
LINEAR = np.where(SRGB <= 0.04045, SRGB / 12.92, ((SRGB + 0.055) / 1.055) ** 2.4)  # light of each value of sRGB
# linear sRGB to cone responses, and their cube roots to L, a, b (Ottosson 2020, "A perceptual color space")
TO_CONES = np.array(
    [[0.4122214708, 0.5363325363, 0.0514459929],
     [0.2119034982, 0.6806995451, 0.1073969566],
     [0.0883024619, 0.2817188376, 0.6299787005]]
)  # fmt: skip
TO_LAB = np.array(
    [[0.2104542553, 0.7936177850, -0.0040720468],
     [1.9779984951, -2.4285922050, 0.4505937099],
     [0.0259040371, 0.7827717662, -0.8086757660]]
)  # fmt: skip


def rgb_to_oklab(rgb: np.ndarray) -> np.ndarray:
    """Return OKLab (N, 3), float64, of sRGB colors uint8 (N, 3)."""
    return np.cbrt(LINEAR[rgb] @ TO_CONES.T) @ TO_LAB.T


def find_palette(images: np.ndarray) -> np.ndarray | None:
    """Return the colors of images uint8 (N, C, H, W), uint8 (P, 3), sorted; None if there are more than 256.

    Transparent pixels do not count.
    """
    is_used = np.zeros(1 << 24, dtype=bool)
    for start in range(0, len(images), BLOCK):
        packed, block = _pack(images[start : start + BLOCK]), images[start : start + BLOCK]
        is_used[packed[block[:, 3] > 0] if block.shape[1] == 4 else packed] = True
        if np.count_nonzero(is_used) > MAX_COLORS:
            return None
    return _unpack(np.flatnonzero(is_used))


def snap_colors(images: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Return images uint8 (..., C, H, W) with the nearest color of the palette in OKLab; alpha is kept.

    Args:
        images: gray, RGB or RGBA.
        palette: uint8 (P, 3); for gray images its grays.
    """
    colors, index = np.unique(_pack(images), return_inverse=True)
    lab, target = rgb_to_oklab(_unpack(colors)), rgb_to_oklab(palette)
    nearest = [
        ((block[:, None] - target) ** 2).sum(axis=2).argmin(axis=1)
        for block in np.array_split(lab, len(lab) // BLOCK + 1)
    ]
    snapped = np.moveaxis(palette[np.concatenate(nearest)[index.reshape(_pack(images).shape)]], -1, -3)
    if images.shape[-3] == 1:
        return np.ascontiguousarray(snapped[..., :1, :, :])
    return np.concatenate([snapped, images[..., 3:, :, :]], axis=-3)


def _pack(images: np.ndarray) -> np.ndarray:
    """Return the colors of uint8 (..., C, H, W) as one number each, (..., H, W)."""
    red, green, blue = (images[..., k % images.shape[-3], :, :].astype(np.uint32) for k in range(3))
    return red << 16 | green << 8 | blue


def _unpack(packed: np.ndarray) -> np.ndarray:
    return np.stack([packed >> 16 & 255, packed >> 8 & 255, packed & 255], axis=-1).astype(np.uint8)


def format_palette(palette: np.ndarray) -> list[str]:
    """Return colors uint8 (P, 3) as "#rrggbb"."""
    return [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in palette.tolist()]


def write_palette(folder: Path, images: np.ndarray) -> None:
    """Write the colors of images uint8 (N, C, H, W) to a run folder, if they are at most 256."""
    palette = find_palette(images)
    if palette is not None:
        write_text_atomically(folder / PALETTE_FILE, "\n".join(format_palette(palette)) + "\n")


def read_palette(palette: str | Sequence[str | int], run: Path, channels: int) -> np.ndarray:
    """Return the colors of a `palette` key, uint8 (P, 3).

    Args:
        palette: "auto" (the colors of the training images), a file, or hex colors.
        run: the run folder.
        channels: of the images of the run.

    Raises:
        UserError: exit 2 if there are no colors, more than 256, or others than grays for gray
            images.
    """
    text = palette if isinstance(palette, str) else f"[{','.join(map(str, palette))}]"
    path = run / PALETTE_FILE if palette == "auto" else Path(text).expanduser()
    if not isinstance(palette, str):
        listed = [f"{color:06}" if isinstance(color, int) else color for color in palette]
        colors = [_parse_color(color) for color in listed]
    elif path.is_file():
        colors = _read_colors(path)
    else:
        fault = 'file not found. Use auto, a file, or \'["#1a1c2c","#f4f4f4"]\''
        if palette == "auto":
            fault = f"the training images have more than {MAX_COLORS} colors, or are streamed. Use a file or a list"
        raise ConfigError(f"palette={palette}: {fault}")
    fault = None
    if None in colors:
        fault = f"{listed[colors.index(None)]} is not a color such as #1a1c2c"
    elif not colors:
        fault = "no colors such as #1a1c2c. A file has one a line, or is a GIMP palette or an image"
    elif len(colors := list(dict.fromkeys(colors))) > MAX_COLORS:
        fault = f"more than {MAX_COLORS} colors"
    elif channels == 1 and any(len(set(color)) > 1 for color in colors):
        fault = "has colors, and the images of this run are gray"
    if fault:
        raise ConfigError(f"palette={text}: {fault}")
    return np.array(colors, dtype=np.uint8)


def _read_colors(path: Path) -> list[tuple[int, ...]]:
    """Return the colors of an image, or of a text file with one color a line."""
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGBA")).reshape(-1, 4)
        return [tuple(color) for color in np.unique(pixels[pixels[:, 3] > 0, :3], axis=0)[: MAX_COLORS + 1].tolist()]
    except UnidentifiedImageError:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise ConfigError(f"palette={path}: {error}") from None
    return [color for color in map(_parse_color, lines) if color]


def _parse_color(line: str) -> tuple[int, ...] | None:
    """Return RGB of a line; None if it is not a color."""
    if hexadecimal := HEX_COLOR.fullmatch(line.strip()):
        digits = hexadecimal[1] or hexadecimal[2] or "".join(digit * 2 for digit in hexadecimal[3])
        return tuple(bytes.fromhex(digits))
    gimp = GIMP_COLOR.fullmatch(line)
    color = tuple(map(int, gimp.groups())) if gimp else (256,)
    return color if max(color) <= 255 else None
