"""From a picture, of whatever kind, to uint8 (C, H, W); a broken one is named."""

import io
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from diffusion_lit.imaging.sizes import ImageSize, height_width
from diffusion_lit.system.errors import Exit, UserError

RESAMPLE = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "area": Image.Resampling.BOX,
}
FITS = {"crop": ImageOps.fit, "stretch": Image.Image.resize}
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
TRIED = 64  # pictures, in each of two ways
S, T = TypeVar("S"), TypeVar("T")


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

    A picture of another size is, with `fit` crop, scaled so that its shorter side fits, and its centre is cut out; with
    stretch both sides are made to fit. With 1 or 3 channels a transparent picture is laid on `background` (RGB, 0-255).
    With 4 channels `alpha` says what becomes of the colours under fully transparent pixels: keep, or zero (black).
    With `render` skin a skin of the old layout, 64x32, becomes one of 64x64, whose left limbs mirror the right ones.
    """

    image_size: ImageSize
    channels: int
    resample: str = "bicubic"
    background: Sequence[int] = (255, 255, 255)
    fit: str = "crop"
    alpha: str = "keep"
    render: str = "none"

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, *height_width(self.image_size)

    def __call__(self, picture: Path | Encoded | np.ndarray) -> np.ndarray:
        """One picture to uint8 (C, H, W). Raises UserError naming the picture if it is broken."""
        with named(picture), opened(picture) as image:
            return self.array(upright(image))

    def array(self, image: Image.Image) -> np.ndarray:
        """A picture that is loaded and upright to uint8 (C, H, W)."""
        image = self._with_channels(image)
        size = height_width(self.image_size)[::-1]
        if self.render == "skin" and image.size == (64, 32):
            image = _unfolded(image)
        if image.size != size:
            image = FITS[self.fit](image, size, RESAMPLE[self.resample])
        array = np.asarray(image)
        if self.alpha == "zero" and self.channels == 4:
            array = np.where(array[..., 3:] > 0, array, np.uint8(0))
        return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))

    def _with_channels(self, image: Image.Image) -> Image.Image:
        image = to_8_bits(image)
        if self.channels < 4 and has_alpha(image):
            canvas = Image.new("RGBA", image.size, tuple(self.background))
            canvas.alpha_composite(image.convert("RGBA"))
            image = canvas
        return image.convert(MODES[self.channels])


def _unfolded(image: Image.Image) -> Image.Image:
    """An RGBA skin of 64x32 as one of 64x64."""
    import torch

    from diffusion_lit.imaging.skins import from_old_layout

    skin = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return Image.fromarray(from_old_layout(skin).permute(1, 2, 0).numpy())


def decoding_of(data: dict) -> Decoding:
    """Return how a `data` group decodes; keys that it lacks have their defaults."""
    return Decoding(**{field.name: data[field.name] for field in fields(Decoding) if field.name in data})


@contextmanager
def named(picture: Path | Encoded | np.ndarray) -> Iterator[None]:
    """Whatever goes wrong with a picture becomes a message that names it."""
    try:
        yield
    except Exception as error:  # decoders raise OSError, ValueError, SyntaxError, MemoryError, struct.error...
        why = str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):  # its own text shows the address of a buffer
            why = "no format of pictures that is known"
        name = "a picture of an array" if isinstance(picture, np.ndarray | Image.Image) else picture
        raise UserError(Exit.DATA, f"{name}: cannot be read as a picture ({why})") from None


def opened(picture: Path | Encoded | np.ndarray | Image.Image) -> Image.Image:
    """The picture as it is stored, not yet read further than its header."""
    if isinstance(picture, Image.Image):
        return picture
    if isinstance(picture, np.ndarray):
        return Image.fromarray(picture)
    if isinstance(picture, Encoded):
        picture = io.BytesIO(picture.data() if callable(picture.data) else picture.data)
    return Image.open(picture)


def upright(image: Image.Image) -> Image.Image:
    """All of it (of an animation the first picture), turned as its EXIF says."""
    image.load()
    return ImageOps.exif_transpose(image)


def is_deep(image: Image.Image) -> bool:
    """Has it one channel of more than 8 bits? Those with three Pillow reads as 8 bits itself."""
    return image.mode.startswith("I") or image.mode == "F"


def has_alpha(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def to_8_bits(image: Image.Image) -> Image.Image:
    """Float pictures hold 0..1 or 0..255, other deep ones 16 bits, which convert() would clip to white."""
    if not is_deep(image):
        return image
    values = np.asarray(image)
    low, high = values.min(initial=0), values.max(initial=0)
    if not (low >= 0 and high <= (255 if image.mode == "F" else 65535)):
        known = "0 to 1 or 0 to 255" if image.mode == "F" else "0 to 65535"
        raise ValueError(f"its values are {low:g} to {high:g}, known are {known}")
    if image.mode == "F":
        return Image.fromarray((values * (255.0 if high <= 1 else 1.0)).round().astype(np.uint8))
    return Image.fromarray((values.astype(np.int64) >> 8).astype(np.uint8))


def decode_all(
    pictures: Sequence[Path | Encoded | np.ndarray], decoding: Decoding, out: np.ndarray, progress: Iterable
) -> None:
    """Decode every picture into `out`, uint8 (N, C, H, W); `progress` is advanced once a picture.

    Raises:
        UserError: with the names of the first ten pictures that cannot be read, and how many there are.
    """

    def decode(k: int) -> str | None:
        try:
            out[k] = decoding(pictures[k])
        except UserError as error:
            return str(error)
        return None

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # corrupt EXIF and large-picture notes; errors still raise
        done = in_the_faster_way(decode, range(len(pictures)))
        faults = [fault for fault, _ in zip(done, progress, strict=False) if fault]
    if faults:
        raise broken(faults, f"{len(faults)} of {len(pictures)} pictures cannot be read; repair or remove them")


def in_the_faster_way(work: Callable[[S], T], items: Sequence[S]) -> Iterator[T]:
    """What `work` makes of every item, in their order: in threads, or one after the other. Of small pictures most is
    Python, and threads wait for each other; of large ones, or from a slow disk, it is not. So both ways are tried.
    """
    with ThreadPoolExecutor() as pool:
        ways, taken = (map, map, pool.map), []  # the first time does not count: Pillow loads what it needs
        for k, way in enumerate(ways):
            begun = time.perf_counter()
            done = list(way(work, items[k * TRIED : (k + 1) * TRIED]))
            taken.append(time.perf_counter() - begun)
            yield from done
        faster = map if taken[1] < taken[2] else pool.map
        for start in range(len(ways) * TRIED, len(items), 4096):  # what waits in a pool takes memory
            yield from faster(work, items[start : start + 4096])


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
