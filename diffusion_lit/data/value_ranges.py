"""`data.value_range=auto`: black and white of images with more than 8 bits, found once for a whole data set."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from diffusion_lit.data.decoding import MAX_PIXELS, StoredImage, map_in_order, open_image, report_broken_image
from diffusion_lit.data.deep_images import is_deep, read_values, require_finite
from diffusion_lit.data.sources.data_source import Split
from diffusion_lit.imaging.rows import choose_rows
from diffusion_lit.system.console import progress_bar
from diffusion_lit.system.errors import DataError

FULL_SCALES = (1, 255, 1023, 4095, 16383, 65535)  # of floats, 8, 10, 12, 14 and 16 bits
SAMPLE = 256  # images of a table that are read; if one of them is deep, all are
HEADER = 25  # bytes, in which a PNG has its depth
PNG, EIGHT_BITS = b"\x89PNG\r\n\x1a\n", (b"\xff\xd8\xff", b"GIF8", b"BM", b"RIFF")  # first bytes of files


def resolve_value_range(data: dict, splits: dict[str, Split]) -> dict:
    """Return the `data` group with [low, high] instead of `value_range=auto`; None if no image has more than 8 bits.

    All images with more than 8 bits are read once, those of the validation split too.
    Streams, which can be read only once, are left at None.
    """
    if data.get("value_range") != "auto":
        return data
    extremes = list(measure_images(splits, data.get("max_pixels", MAX_PIXELS)))
    if not extremes:
        return data | {"value_range": None}
    lows, highs = zip(*extremes, strict=True)
    return data | {"value_range": choose_range(min(lows), max(highs))}


def choose_range(low: float, high: float) -> list[float]:
    """Return the full scale of values from low to high, or [low, high] itself where none is at least a quarter used.

    >>> choose_range(0, 3900), choose_range(0.0, 0.9), choose_range(-1024, 3071), choose_range(0, 1.5)
    ([0, 4095], [0, 1], [-1024, 3071], [0, 1.5])
    """
    full = next((scale for scale in FULL_SCALES if high <= scale), None)
    if full and low >= 0 and high > full / 4:
        return [0, full]
    low, high = (int(value) if value == int(value) and abs(value) < 2**63 else float(value) for value in (low, high))
    return [low, high] if high > low else [low, low + max(1, abs(low) * 1e-6)]


def measure_images(splits: dict[str, Split], max_pixels: int = MAX_PIXELS) -> Iterator[tuple[float, float]]:
    """Yield the smallest and the largest value of each image with more than 8 bits; broken images are left out."""
    listed = [part for split in splits.values() if split.labels is not None for part in _list_parts(split.images)]
    for images in listed:
        candidates = _list_candidates(images, max_pixels)
        with progress_bar("reading values", visible=len(candidates) >= 2000, transient=True) as bar:
            results = map_in_order(lambda k, images=images: _measure(images, k, max_pixels), candidates)
            yield from (found for found in bar.track(results, len(candidates), description="") if found)


def _list_parts(images: object) -> list:
    """Return the sequences that `data=concat` is made of; other images as one sequence."""
    return [leaf for part in images.parts for leaf in _list_parts(part)] if hasattr(images, "parts") else [images]


def _list_candidates(images: Sequence, max_pixels: int) -> Sequence[int]:
    """Return the indices of the images that may have more than 8 bits, without decoding any of a folder."""
    everything, array = range(len(images)), getattr(images, "array", images)
    if isinstance(array, np.ndarray):
        return everything if is_deep(array) else ()
    if isinstance(images, list):
        return [k for k in everything if _may_be_deep(images[k])]
    sample = choose_rows(len(images), SAMPLE)
    return everything if any(_measure(images, k, max_pixels) for k in sample) else ()


def _may_be_deep(path: Path) -> bool:
    """Return whether a file may have more than 8 bits, by its first bytes."""
    if not path.is_file():
        return False
    with suppress(OSError), open(path, "rb") as file:
        header = file.read(HEADER)
        return header[-1:] == b"\x10" if header.startswith(PNG) else not header.startswith(EIGHT_BITS)
    return False


def _measure(images: Sequence, k: int, max_pixels: int) -> tuple[float, float] | None:
    """Return the smallest and the largest value of image k; None for 8 bits, and for what decoding will refuse."""
    with suppress(DataError):
        values = read_deep_values(images[k], max_pixels)
        if values is not None and values.size:
            return values.min().item(), values.max().item()
    return None


def read_deep_values(image: StoredImage, max_pixels: int = MAX_PIXELS) -> np.ndarray | None:
    """Return the values of an image with more than 8 bits, None for other images.

    Raises:
        DataError: with the name of an image that cannot be read, or has values that are not
            finite.
    """
    with report_broken_image(image):
        if isinstance(image, np.ndarray):
            values = image if is_deep(image) else None
        else:
            if isinstance(image, Image.Image):
                image.load()
            with open_image(image, max_pixels) as opened:
                values = read_values(opened, lambda: open_image(image, max_pixels)) if is_deep(opened) else None
        if values is not None:
            require_finite(values)
        return values
