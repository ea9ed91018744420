"""All pictures of a split as one uint8 array, decoded once: in RAM, or in a file that runs and processes share."""

import hashlib
import os
import platform
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from diffusion_lit.data.decoding import Decoding, decode_all
from diffusion_lit.data.sources import Split
from diffusion_lit.errors import Exit, UserError


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
    """Decode a split into RAM, or with `cache_dir` into a memory-mapped file that the next run finds again."""
    shape = (len(split.pictures), decoding.channels, decoding.image_size, decoding.image_size)
    if cache_dir is None:
        images = np.empty(shape, np.uint8)
        decode_all(split.pictures, decoding, images, _progress(len(images), name))
        return ImageStore(images, split.labels)
    path = Path(cache_dir).expanduser() / f"{name}-{_key(split.pictures, decoding)}.npy"
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(Exit.OUTPUT, f"data.cache_dir={cache_dir} cannot be made: {error.strerror}") from None
        # a killed build is never taken for a whole one
        building = path.with_suffix(f".building-{platform.node()}-{os.getpid()}")
        try:
            images = np.lib.format.open_memmap(building, "w+", np.uint8, shape)
            decode_all(split.pictures, decoding, images, _progress(len(images), name))
            images.flush()
            os.replace(building, path)
        finally:
            building.unlink(missing_ok=True)
    try:
        return ImageStore(np.load(path, mmap_mode="r"), split.labels)
    except ValueError:
        raise UserError(Exit.DATA, f"{path} is damaged: remove it, and the pictures are decoded again") from None


def _key(pictures: Sequence[Path] | np.ndarray, decoding: Decoding) -> str:
    """Changes when a file, its size, its time or the way of decoding changes."""
    digest = hashlib.blake2b(repr(astuple(decoding)).encode(), digest_size=8)
    if isinstance(pictures, np.ndarray):
        digest.update(pictures.tobytes())
    else:
        for path in pictures:
            stat = os.stat(path) if os.path.exists(path) else os.lstat(path)  # a broken link is told of by decoding
            digest.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _progress(total: int, name: str):
    from rich.progress import track

    return track(range(total), f"reading {name}", transient=True, disable=total < 2000)
