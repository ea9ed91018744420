"""What a data source is, and how to add one.

A source lists images and labels; decoding, caching and batching are done for it. It is a
class with two members:

    class Stripes:
        class_names = ["horizontal", "vertical"]  # empty: without labels

        def __init__(self, root: str): ...  # its arguments are keys of the yaml

        def splits(self) -> dict[str, Split]:
            return {"train": Split(paths, labels)}  # and "val", where the source has a validation split

It may have attributes for the summary of a run and for `audit`: `notes`, a list
of lines, and `left_out`, the names of what is not used by the reason
(`format_left_out`). Beside the class there is a file `conf/data/stripes.yaml`,
a copy of `conf/data/image_folder.yaml` with another `_target_` and these keys.
Nothing here imports torch, so that a missing folder is reported within a
second.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from diffusion_lit.data.captions import Captions
from diffusion_lit.data.decoding import Encoded, StoredImage
from diffusion_lit.system.errors import DataError

SPLIT_NAMES = {
    "train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test", "training": "train",
    "dev": "val", "testing": "test",
}  # fmt: skip


class ImageSequence(Protocol):
    """Images that are read when they are indexed, such as the rows of a table."""

    fingerprint: str  # changes with the images, and is the same in the next process

    def __len__(self) -> int:
        """Return the number of images."""

    def __getitem__(self, k: int) -> StoredImage:
        """Return image k."""


class ImageStream(Protocol):
    """Images with their labels that arrive one after the other, once."""

    fingerprint: str
    total: int | None  # number of images, if it is known

    def __iter__(self) -> Iterator[tuple[Path | Encoded, int]]:
        """Yield (image, label)."""

    def on_cached(self) -> None:
        """Run after all images are decoded and stored in `data.cache_dir`."""


@dataclass(frozen=True)
class Subset:
    """The images of a sequence at `indices`, int64 (N,)."""

    images: ImageSequence
    indices: np.ndarray

    @property
    def fingerprint(self) -> str:
        """Return a digest of the sequence and the indices."""
        indices = hashlib.blake2b(self.indices.astype(np.int64), digest_size=8)
        return f"{self.images.fingerprint} {indices.hexdigest()}"

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, k: int) -> StoredImage:
        return self.images[int(self.indices[k])]


@dataclass(frozen=True)
class Split:
    """The images of one split, in a fixed order.

    Args:
        images: paths, a uint8 array (N, H, W) or (N, H, W, C), a sequence, or a stream.
        labels: int64 (N,); None for a stream, which yields them with the images.
        groups: numbers or names (N,), or None. Images of one group are never divided between
            training and validation.
        captions: of each image, some or none; None if the source has no captions.
    """

    images: list[Path] | np.ndarray | ImageSequence | ImageStream
    labels: np.ndarray | None
    groups: np.ndarray | None = None
    captions: Captions | None = None

    def select(self, indices: np.ndarray) -> "Split":
        """Return the split with only the images at `indices`, int64 (N,)."""
        if isinstance(self.images, list):
            images = [self.images[k] for k in indices]
        elif isinstance(self.images, np.ndarray):
            images = self.images[indices]
        else:
            images = Subset(self.images, indices)
        groups = None if self.groups is None else self.groups[indices]
        captions = None if self.captions is None else [self.captions[k] for k in indices]
        return Split(images, self.labels[indices], groups, captions)


class DataSource(Protocol):
    """Where images come from; see the top of this file."""

    class_names: list[str]

    def splits(self) -> dict[str, Split]:
        """Return "train", and "val" where the source has a validation split."""


def fingerprint_images(images: Sequence[Path] | np.ndarray | ImageSequence | ImageStream) -> str:
    """Return a digest that changes with the images; of files their names, sizes and times are read, not the pixels."""
    if not isinstance(images, list | np.ndarray):
        return images.fingerprint
    digest = hashlib.blake2b(digest_size=8)
    if isinstance(images, np.ndarray):
        digest.update(np.ascontiguousarray(images))
    else:
        for path in images:
            digest.update(file_state(path).encode(errors="surrogateescape"))
    return digest.hexdigest()


def file_state(path: Path) -> str:
    """Return absolute path, size and modification time of a file."""
    stat = os.stat(path) if os.path.exists(path) else os.lstat(path)  # decoding reports a broken link
    return f"{os.path.abspath(path)}\0{stat.st_size}\0{stat.st_mtime_ns}\n"


@contextmanager
def report_damaged_file(path: Path, part: str = "") -> Iterator[None]:
    """Raise DataError with the name of the file, and of a part of it, for any error that reading it raises."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # gzip, zip, pickle, scipy and numpy raise about ten types
        if isinstance(error, OSError) and error.errno:  # permissions, a failing disk
            raise DataError(f"{error.filename or path}: {error.strerror}") from None
        if isinstance(error, ValueError) and re.search("pickle|Python objects", str(error)):
            # the advice of numpy, to allow pickles, is unsafe
            fault = f"{path}{', ' * bool(part)}{part}: holds Python objects, or its header is damaged"
            raise DataError(f"{fault}. Save numbers or text: np.array(labels, dtype=str).") from None
        reason = str(error) or type(error).__name__
        raise DataError(f"{path} is damaged or incomplete ({reason}). Remove it, or download it again.") from None
