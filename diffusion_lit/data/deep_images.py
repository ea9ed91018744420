"""Images with more than 8 bits a channel: 16-bit, 32-bit, signed and float ones, and their scale to 8 bits."""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

# raw modes of Pillow with 16 bits a channel, of which it reads the upper 8 -> raw mode that reads the lower 8
LOWER_BYTES = {
    "RGB;16B": "RGB;16L", "RGB;16L": "RGB;16B", "RGB;16N": "RGB;16B",
    "RGBA;16B": "RGBA;16L", "RGBA;16L": "RGBA;16B", "RGBA;16N": "RGBA;16B",
}  # fmt: skip
GRAY_ALPHA = "LA;16B"  # of a PNG; read as RGBA it is the two bytes of gray, and those of alpha


def is_deep(image: Image.Image | np.ndarray) -> bool:
    """Return whether an image, of which only the header is read, has more than 8 bits a channel."""
    if isinstance(image, np.ndarray):
        return image.dtype != np.uint8
    return image.mode.startswith("I") or image.mode == "F" or _raw_mode(image) in (*LOWER_BYTES, GRAY_ALPHA)


def read_values(image: Image.Image, reopen: Callable[[], Image.Image]) -> np.ndarray:
    """Return the values of a deep image, (H, W) or (H, W, 3), without its alpha channel.

    Args:
        image: only its header is read so far. It is loaded here.
        reopen: opens the same file again, for Pillow reads one byte of two at once.
    """
    raw_mode = _raw_mode(image)
    if raw_mode not in (*LOWER_BYTES, GRAY_ALPHA):
        return np.asarray(image)
    with reopen() as again:
        if raw_mode == GRAY_ALPHA:
            _set_raw_mode(again, "RGBA")
            upper, lower = np.asarray(again)[..., 0], np.asarray(again)[..., 1]
        else:
            _set_raw_mode(again, LOWER_BYTES[raw_mode])
            upper, lower = np.asarray(image)[..., :3], np.asarray(again)[..., :3]
    return upper.astype(np.uint16) << 8 | lower


def require_finite(values: np.ndarray) -> None:
    """Raise ValueError for values that are NaN or infinite."""
    if values.dtype.kind == "f" and (count := np.count_nonzero(~np.isfinite(values))):
        raise ValueError(f"{count:,} of its values are NaN or infinite")


def scale_to_8_bits(values: np.ndarray, value_range: Sequence[float] | str | None) -> np.ndarray:
    """Return values as uint8, low as 0 and high as 255; values outside of the range [low, high] are clipped.

    Raises:
        ValueError: for values that are not finite, or without a range.
    """
    require_finite(values)
    if value_range is None or isinstance(value_range, str):
        low, high = values.min(initial=0), values.max(initial=0)
        raise ValueError(f"values from {low:g} to {high:g} need a range: set data.value_range=[low,high]")
    low, high = value_range
    scaled = (values.astype(np.float64) - low) * (255 / (high - low))
    return scaled.round().clip(0, 255).astype(np.uint8)


def to_8_bits(
    image: Image.Image, reopen: Callable[[], Image.Image], value_range: Sequence[float] | str | None
) -> Image.Image:
    """Return a deep image with 8 bits a channel; its alpha channel and its EXIF data are kept.

    For `reopen` see `read_values`, for the range `scale_to_8_bits`.
    """
    scaled = Image.fromarray(scale_to_8_bits(read_values(image, reopen), value_range))
    if image.mode == "RGBA":
        scaled = scaled.convert("RGB")
        scaled.putalpha(image.getchannel("A"))
    if "exif" in image.info:
        scaled.info["exif"] = image.info["exif"]
    return scaled


def _raw_mode(image: Image.Image) -> str:
    """Return Pillow's raw mode of a file that is not loaded yet; empty for other images."""
    arguments = image.tile[0].args if getattr(image, "tile", None) else ""
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _set_raw_mode(image: Image.Image, new: str) -> None:
    arguments = [new if isinstance(tile.args, str) else (new, *tile.args[1:]) for tile in image.tile]
    image.tile = [tile._replace(args=own) for tile, own in zip(image.tile, arguments, strict=True)]
