"""All pictures of a split as one uint8 array, decoded once: in RAM, or in a file that runs and processes share."""

import hashlib
import io
import math
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from itertools import count
from pathlib import Path

import numpy as np

from diffusion_lit.console import progress_bar
from diffusion_lit.data.decoding import Decoding, decode_all, decode_stream, decoding_of
from diffusion_lit.data.sources import Rows, Split, Stream, fingerprint, hold_out
from diffusion_lit.errors import Exit, UserError
from diffusion_lit.platforms import take_room


@dataclass(frozen=True)
class ImageStore:
    """images uint8 (N, C, H, W) and labels int64 (N,)."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of what is in it: pixels, labels and their order."""
        digest = hashlib.blake2b(repr(self.images.shape).encode(), digest_size=8)
        for start in range(0, len(self), 4096):  # a memory-mapped array is never read whole
            digest.update(np.ascontiguousarray(self.images[start : start + 4096]))
        digest.update(self.labels)
        return digest.hexdigest()


def load(split: Split, decoding: Decoding, cache_dir: str | None, name: str) -> ImageStore:
    """Decode a split into RAM, or with `cache_dir` into a memory-mapped file that the next run finds again.

    A stream is decoded as it arrives; nothing of the originals is kept.
    """
    streamed = split.labels is None
    if cache_dir is None:
        return _streamed(split.pictures, decoding, name) if streamed else _decoded(split, decoding, name)
    path = Path(cache_dir).expanduser() / f"{name}-{_key(split.pictures, decoding)}.npy"
    labels = path.with_suffix(".labels.npy")  # of a stream
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(Exit.OUTPUT, f"data.cache_dir={cache_dir} cannot be made: {error.strerror}") from None
        # a killed build is never taken for a whole one
        building = path.with_suffix(f".building-{platform.node()}-{os.getpid()}")
        try:
            if streamed:
                _save(labels, _write_stream(split.pictures, decoding, building, name))
            else:
                images = _mapped(building, _shape(len(split.pictures), decoding))
                decode_all(split.pictures, decoding, images, _progress(len(images), name))
                images.flush()
            os.replace(building, path)  # after the labels: where it is, both are
        finally:
            building.unlink(missing_ok=True)
    if streamed:
        split.pictures.remember()
    try:
        return ImageStore(np.load(path, mmap_mode="r"), np.load(labels) if streamed else split.labels)
    except (ValueError, FileNotFoundError):
        raise UserError(Exit.DATA, f"{path} is damaged: remove it, and the pictures are decoded again") from None


def load_splits(source, config: dict) -> tuple[ImageStore, ImageStore | None]:
    """The training pictures of a `data` group and those held out (None: none).

    With `random_crop` the training pictures are that much larger, held-out ones are cut already.
    """
    decoding = decoding_of(config)
    decoding = replace(decoding, image_size=decoding.image_size + config["random_crop"])
    splits = hold_out(source.splits(), config["val_fraction"])
    train, val = load(splits["train"], decoding, config["cache_dir"], "train"), None
    if "val" in splits:
        val = load(splits["val"], decoding, config["cache_dir"], "val")
    elif splits["train"].labels is None:
        train, val = cut(train, config["val_fraction"])
    return train, centre(val, config["image_size"]) if val else None


def cut(store: ImageStore, fraction: float) -> tuple[ImageStore, ImageStore | None]:
    """The pictures without the last `fraction` of them, and those (None: none); views, nothing is copied."""
    n = len(store)
    held_out = min(round(n * fraction), n - 1)
    parts = ImageStore(store.images[: n - held_out], store.labels[: n - held_out])
    return parts, ImageStore(store.images[n - held_out :], store.labels[n - held_out :]) if held_out else None


def centre(store: ImageStore, size: int) -> ImageStore:
    """The middle size x size of every picture; a view."""
    edge = (store.images.shape[2] - size) // 2
    return ImageStore(store.images[:, :, edge : edge + size, edge : edge + size], store.labels)


def _shape(n: int, decoding: Decoding) -> tuple[int, int, int, int]:
    return n, decoding.channels, decoding.image_size, decoding.image_size


def _mapped(path: Path, shape: tuple[int, int, int, int]) -> np.memmap:
    """A new .npy file; its room on the disk is taken now, for a map that runs out of it ends the process."""
    try:
        images = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
        with open(path, "r+b") as file:
            take_room(file.fileno(), path.stat().st_size)
    except OSError as error:
        size = math.prod(shape) / 2**20
        raise UserError(Exit.OUTPUT, f"{path.parent} cannot hold {size:,.0f} MiB: {error.strerror}") from None
    return images


def _decoded(split: Split, decoding: Decoding, name: str) -> ImageStore:
    images = np.empty(_shape(len(split.pictures), decoding), np.uint8)
    decode_all(split.pictures, decoding, images, _progress(len(images), name))
    return ImageStore(images, split.labels)


def _streamed(stream: Stream, decoding: Decoding, name: str) -> ImageStore:
    grown = io.BytesIO()
    labels = decode_stream(stream, decoding, grown, _progress(stream.total, name))
    return ImageStore(np.frombuffer(grown.getbuffer(), np.uint8).reshape(_shape(len(labels), decoding)), labels)


def _write_stream(stream: Stream, decoding: Decoding, path: Path, name: str) -> np.ndarray:
    """A .npy file of a stream, and its labels. How many there are is known, and written, when it ends."""

    def write_header(n: int) -> int:
        header = {"descr": "|u1", "fortran_order": False, "shape": _shape(n, decoding)}
        np.lib.format.write_array_header_1_0(file, header)  # leaves room for the first number to grow
        return file.tell()

    try:
        with open(path, "wb") as file:
            start = write_header(0)
            labels = decode_stream(stream, decoding, file, _progress(stream.total, name))
            file.seek(0)
            assert write_header(len(labels)) == start
    except OSError as error:
        raise UserError(Exit.OUTPUT, f"data.cache_dir: {path} cannot be written: {error.strerror}") from None
    return labels


def _save(path: Path, array: np.ndarray) -> None:
    building = path.with_suffix(f".building-{os.getpid()}.npy")
    np.save(building, array)
    os.replace(building, path)


def _key(pictures: Sequence[Path] | np.ndarray | Rows | Stream, decoding: Decoding) -> str:
    """Changes when a file, its size, its time or the way of decoding changes."""
    words = f"{astuple(decoding)} {fingerprint(pictures)}"
    return hashlib.blake2b(words.encode(), digest_size=8).hexdigest()


def _progress(total: int | None, name: str) -> Iterator[int]:
    """To be advanced once a picture; it never ends by itself."""
    with progress_bar(f"reading {name}", shown=total is None or total >= 2000, transient=True) as bar:
        yield from bar.track(count(), total, description="")
