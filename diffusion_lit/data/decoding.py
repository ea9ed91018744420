"""From a picture, of whatever kind, to uint8 (C, H, W); a broken one is named."""

import io
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from diffusion_lit.errors import Exit, UserError

RESAMPLE = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "area": Image.Resampling.BOX,
}
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True)
class Encoded:
    """The bytes of a picture's file, or what fetches them, and what it is called in messages."""

    name: str
    data: bytes | Callable[[], bytes]

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Decoding:
    """How a picture becomes an array; fields are keys of `conf/data`.

    A picture of another size is scaled so that its shorter side fits and its centre is cut out. With 1 or 3 channels a
    transparent picture is laid on `background` (RGB, 0-255); with 4 channels alpha is kept.
    """

    image_size: int
    channels: int
    resample: str = "bicubic"
    background: Sequence[int] = (255, 255, 255)

    def __call__(self, picture: Path | Encoded | np.ndarray) -> np.ndarray:
        """One picture to uint8 (C, image_size, image_size). Raises UserError naming the picture if it is broken."""
        try:
            image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else _open(picture)
            image = self._with_channels(image)
            size = (self.image_size, self.image_size)
            if image.size != size:
                image = ImageOps.fit(image, size, RESAMPLE[self.resample])
            array = np.asarray(image)
        except Exception as error:  # decoders raise OSError, ValueError, SyntaxError, MemoryError, struct.error...
            why = str(error) or type(error).__name__
            raise UserError(Exit.DATA, f"{picture}: cannot be read as a picture ({why})") from None
        return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))

    def _with_channels(self, image: Image.Image) -> Image.Image:
        if image.mode.startswith("I") or image.mode == "F":  # convert() would clip 16 bits to white
            image = _to_8_bits(image)
        if self.channels < 4 and (image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info):
            canvas = Image.new("RGBA", image.size, tuple(self.background))
            canvas.alpha_composite(image.convert("RGBA"))
            image = canvas
        return image.convert(MODES[self.channels])


def _open(picture: Path | Encoded) -> Image.Image:
    if isinstance(picture, Encoded):
        picture = io.BytesIO(picture.data() if callable(picture.data) else picture.data)
    try:
        with Image.open(picture) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except UnidentifiedImageError:  # its own text shows the address of a buffer
        raise ValueError("no format of pictures that is known") from None


def _to_8_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if image.mode == "F":  # float pictures hold 0..1 or 0..255
        values = values * (255.0 if values.max(initial=0) <= 1.0 else 1.0)
        return Image.fromarray(values.clip(0, 255).round().astype(np.uint8))
    return Image.fromarray((values.clip(0, 65535).astype(np.int64) >> 8).astype(np.uint8))


def decode_all(
    pictures: Sequence[Path | Encoded | np.ndarray], decoding: Decoding, out: np.ndarray, progress: Iterable
) -> None:
    """Decode every picture into `out`, uint8 (N, C, H, W), in threads; `progress` is advanced once a picture.

    Raises:
        UserError: with the names of the first ten pictures that cannot be read, and how many there are.
    """

    def decode(k: int) -> str | None:
        try:
            out[k] = decoding(pictures[k])
        except UserError as error:
            return str(error)
        return None

    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore")  # corrupt EXIF and large-picture notes; errors still raise
        faults = [fault for fault, _ in zip(pool.map(decode, range(len(pictures))), progress, strict=False) if fault]
    if faults:
        raise broken(faults, f"{len(faults)} of {len(pictures)} pictures cannot be read; repair or remove them")


def decode_stream(
    stream: Iterable[tuple[Path | Encoded, int]], decoding: Decoding, out: BinaryIO, progress: Iterable
) -> np.ndarray:
    """Decode pictures as they come, in threads, and write them to `out` one after the other, uint8 (C, H, W) each.

    Returns:
        their labels, int64 (N,).
    Raises:
        UserError: with the names of pictures that cannot be read, soon after the first: nobody can repair them there.
    """

    def decode(picture: Path | Encoded) -> np.ndarray | str:
        try:
            return decoding(picture)
        except UserError as error:
            return str(error)

    def write(arrays: Iterable[np.ndarray | str]) -> None:
        faults = []
        for array, _ in zip(arrays, progress, strict=False):
            faults.append(array) if isinstance(array, str) else out.write(array)
        if faults:
            raise broken(faults, "the stream has pictures that cannot be read; end it before them with data.max_images")

    labels, decoded = [], ()
    progress, stream = iter(progress), iter(stream)
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore")
        while chunk := list(islice(stream, 256)):  # while the threads decode the chunk before
            write(decoded)
            decoded = pool.map(decode, [picture for picture, _ in chunk])
            labels += [label for _, label in chunk]
        write(decoded)
    return np.array(labels, dtype=np.int64)


def broken(faults: list[str], what: str) -> UserError:
    shown = "\n  ".join(faults[:10])
    more = f"\n  and {len(faults) - 10} more" if len(faults) > 10 else ""
    return UserError(Exit.DATA, f"{what}:\n  {shown}{more}")
