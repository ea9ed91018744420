"""Decode images of any kind to uint8 (C, H, W)."""

import io
import os
import stat
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from diffusion_lit.data.deep_images import is_deep, scale_to_8_bits, to_8_bits
from diffusion_lit.data.metadata import describe_content, read_orientation, strip_metadata
from diffusion_lit.imaging.sizes import ImageSize, height_width
from diffusion_lit.system.console import escape_controls
from diffusion_lit.system.errors import DataError

RESAMPLE = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "area": Image.Resampling.BOX,
}
FITS = {"crop": ImageOps.fit, "stretch": Image.Image.resize}
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
CHUNK = 64  # images that are decoded at once, so also what waits in memory
MAX_PIXELS = 178_956_970  # of an image, unless `data.max_pixels` is set
TRANSPOSE = dict(enumerate(map(Image.Transpose, (0, 3, 1, 5, 4, 6, 2)), 2))  # by EXIF orientation
MAX_ERRORS = 10  # images that an error message names
S, T = TypeVar("S"), TypeVar("T")


@dataclass(frozen=True)
class Encoded:
    """The bytes of an image file, or a function that fetches them.

    Args:
        name: what messages call the image.
        data: the bytes, or the function.
    """

    name: str
    data: bytes | Callable[[], bytes]

    def __str__(self) -> str:
        return self.name


StoredImage = Path | Encoded | np.ndarray | Image.Image


@dataclass(frozen=True)
class Decoding:
    """How an image becomes an array. The fields are keys of `conf/data`.

    Args:
        image_size: pixels, one number or (height, width).
        channels: 1 gray, 3 RGB, 4 RGBA.
        resample: a key of `RESAMPLE`, for images of another size.
        background: RGB, 0 to 255, under transparent pixels with 1 or 3 channels.
        fit: "crop" scales the shorter side and cuts out the center, "stretch" scales both
            sides.
        alpha: with 4 channels "zero" makes fully transparent pixels black, "keep" keeps
            their colors; "hard" makes alpha 0 (and the pixel black) below 128, else 255.
        render: "skin" converts 64x32 skins to the 64x64 layout, whose left limbs mirror the
            right ones.
        value_range: (black, white) of images with more than 8 bits a channel; values outside
            are clipped. None or "auto" (not found yet): such images are an error.
        max_pixels: width times height, at most. Larger images are an error.
    """

    image_size: ImageSize
    channels: int
    resample: str = "bicubic"
    background: Sequence[int] = (255, 255, 255)
    fit: str = "crop"
    alpha: str = "keep"
    render: str = "none"
    value_range: Sequence[float] | str | None = None
    max_pixels: int = MAX_PIXELS

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (C, H, W)."""
        return self.channels, *height_width(self.image_size)

    def __call__(self, image: StoredImage) -> np.ndarray:
        """Return an image as uint8 (C, H, W). Raise DataError with its name if it cannot be read."""
        finished = (np.uint8, self.shape[1:] if self.channels == 1 else (*self.shape[1:], self.channels), "none")
        if isinstance(image, np.ndarray) and (image.dtype, image.shape, self.render) == finished:
            return self._to_planes(image)  # Pillow would take twenty times as long to change nothing
        with report_broken_image(image), open_8_bits(image, self) as opened:
            return self.to_array(load_upright(opened))

    def to_array(self, image: Image.Image) -> np.ndarray:
        """Return a loaded, upright image of 8 bits as uint8 (C, H, W)."""
        image = self._convert_channels(image)
        size = height_width(self.image_size)[::-1]
        if self.render == "skin" and image.size == (64, 32):
            image = _convert_old_skin(image)
        if image.size != size:
            image = FITS[self.fit](image, size, RESAMPLE[self.resample])
        return self._to_planes(np.asarray(image))

    def _to_planes(self, array: np.ndarray) -> np.ndarray:
        if self.alpha != "keep" and self.channels == 4:
            array = np.where(array[..., 3:] > (127 if self.alpha == "hard" else 0), array, np.uint8(0))
            if self.alpha == "hard":
                array[..., 3][array[..., 3] > 0] = 255
        return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))

    def _convert_channels(self, image: Image.Image) -> Image.Image:
        if self.channels < 4 and has_alpha(image):
            canvas = Image.new("RGBA", image.size, tuple(self.background))
            canvas.alpha_composite(image.convert("RGBA"))
            image = canvas
        return image.convert(MODES[self.channels])


def _convert_old_skin(image: Image.Image) -> Image.Image:
    import torch

    from diffusion_lit.imaging.skins import convert_old_layout

    skin = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return Image.fromarray(convert_old_layout(skin).permute(1, 2, 0).numpy())


def decoding_from_config(data: dict) -> Decoding:
    """Return the decoding of a `data` group; missing keys have the defaults of `Decoding`."""
    return Decoding(**{field.name: data[field.name] for field in fields(Decoding) if field.name in data})


@contextmanager
def report_broken_image(image: StoredImage) -> Iterator[None]:
    """Raise DataError with the name of the image for any error of reading it."""
    try:
        yield
    except Exception as error:  # decoders raise OSError, ValueError, SyntaxError, MemoryError, struct.error...
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if isinstance(error, Image.DecompressionBombError):
            reason = f"{reason}. Raise data.max_pixels, or shrink it"
        name = "an image of an array" if isinstance(image, np.ndarray | Image.Image) else image
        name = escape_controls(str(name))
        raise DataError(f"{name}: cannot be read as an image ({reason})") from None


def read_encoded(image: StoredImage) -> StoredImage:
    """Return a file, or bytes that are fetched, as bytes in memory; any other image as it is."""
    return Encoded(str(image), _read_file(image)) if isinstance(image, Path | Encoded) else image


def open_image(image: StoredImage, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return the PIL image, of which only the header is decoded so far.

    Raises:
        ValueError: for a file that is no image, or one with more pixels than `max_pixels`.
    """
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, -(-max_pixels // 2))  # Pillow allows twice as many
    opened = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    if not isinstance(opened, Image.Image):
        opened = _open_encoded(_read_file(image))
    width, height = opened.size
    if width * height > max_pixels:
        raise ValueError(f"{width}x{height} are more than {max_pixels:,} pixels. Raise data.max_pixels, or shrink it")
    return opened


def _read_file(image: Path | Encoded) -> bytes:
    if isinstance(image, Encoded):
        return image.data() if callable(image.data) else image.data
    if not stat.S_ISREG(os.stat(image).st_mode):  # a pipe would wait for ever
        raise ValueError("not a regular file")
    return image.read_bytes()


def _open_encoded(data: bytes) -> Image.Image:
    """Return the image of a file. What is not pixels cannot fail it, see `strip_metadata`."""
    is_parsed_later = data.startswith((b"\x89PNG", b"II", b"MM"))  # with the pixels
    try:
        return Image.open(io.BytesIO(strip_metadata(data) if is_parsed_later else data))
    except Image.DecompressionBombError:
        raise
    except Exception:  # decoders raise about ten types
        try:
            return Image.open(io.BytesIO(strip_metadata(data)))
        except UnidentifiedImageError:  # its own text shows the address of a buffer
            raise ValueError(describe_content(data)) from None


def open_8_bits(image: StoredImage, decoding: Decoding) -> Image.Image:
    """Return the PIL image; one with more than 8 bits a channel is loaded and scaled, see `Decoding.value_range`."""
    if isinstance(image, np.ndarray):
        image = scale_to_8_bits(image, decoding.value_range) if is_deep(image) else image
    if isinstance(image, Image.Image):
        image.load()  # so that it need not be opened twice
    stored = open_image(image, decoding.max_pixels)
    if not is_deep(stored):
        return stored
    with stored:
        return to_8_bits(stored, lambda: open_image(image, decoding.max_pixels), decoding.value_range)


def load_upright(image: Image.Image) -> Image.Image:
    """Read all pixels (of an animation the first frame) and rotate them as the EXIF orientation says."""
    image.load()  # Pillow rotates a TIFF here, and forgets its orientation
    if image.mode == "LAB":
        to_rgb = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
        image = ImageCms.applyTransform(image, to_rgb)
    exif = image.info.get("exif")
    orientation = read_orientation(exif) if isinstance(exif, bytes) else 1
    return image if orientation == 1 else image.transpose(TRANSPOSE[orientation])


def has_alpha(image: Image.Image) -> bool:
    """Return whether the image has an alpha channel or a transparent color."""
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def decode_images(
    items: Iterable[S], decode: Callable[[S], np.ndarray], progress: Iterable, total: int | None = None
) -> Iterator[np.ndarray]:
    """Yield `decode(item)`, uint8 (C, H, W), for each item, in order.

    Args:
        items: images, or their numbers.
        decode: a `Decoding`, or a function that reads an image and calls one.
        progress: is advanced once for each image.
        total: number of images; None for a stream.

    Raises:
        DataError: with the names of the first ten images that cannot be read. Of files all
            are checked first; a stream, which cannot be repaired, ends soon after the first
            one.
    """

    def try_decode(item: S) -> np.ndarray | DataError:
        try:
            return decode(item)
        except DataError as error:
            return error

    errors = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # corrupt EXIF and large images; errors still raise
        for k, (result, _) in enumerate(zip(map_in_order(try_decode, items), progress, strict=False)):
            if isinstance(result, DataError):
                errors.append(str(result))
            elif not errors:
                yield result
            if errors and total is None and k % 256 == 255:
                break
    if errors:
        of_files = f"{len(errors)} of {total} images cannot be read. Repair or remove them"
        of_stream = "The stream has images that cannot be read. End it before them with data.max_images"
        raise list_errors(errors, of_stream if total is None else of_files)


def map_in_order(function: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """Yield `function(item)` for each item, in order, computed in threads or one after the other.

    Small images are mostly Python, where threads wait for each other; large ones and slow
    disks are not. So both ways are timed on one chunk each, and the faster one does the
    rest.
    """
    items = iter(items)
    with ThreadPoolExecutor() as pool:
        seconds = []
        for run in (map, map, pool.map):  # the first chunk does not count: Pillow loads what it needs
            chunk = list(islice(items, CHUNK))
            begin = time.perf_counter()
            done = list(run(function, chunk))
            seconds.append(time.perf_counter() - begin)
            yield from done
        faster, pending = map if seconds[1] < seconds[2] else pool.map, ()
        while chunk := list(islice(items, CHUNK)):
            ahead = faster(function, chunk)  # a pool works on this chunk while the one before is consumed
            yield from pending
            pending = ahead
        yield from pending


def list_errors(errors: Sequence[str], message: str) -> DataError:
    """Return a DataError with the message and the first errors, one a line."""
    lines = list(errors[:MAX_ERRORS])
    if len(errors) > MAX_ERRORS:
        lines.append(f"and {len(errors) - MAX_ERRORS} more")
    return DataError("\n  ".join([f"{message}:", *lines]))
