"""What a file of `data.cache_dir` holds: three arrays, one after the other as `np.save` writes them.

They are the decoded pictures uint8 (N, C, H, W), which are memory-mapped; labels int64 (N,) of a stream (of other
sources none); and CRC-32 sums uint32 (N + 1,) of every picture and of the labels.
"""

import math
import os
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from diffusion_lit.system.errors import Exit, UserError
from diffusion_lit.system.platform import preallocate


class Pictures:
    """Pictures (N, C, H, W) to be written in any order, and their sums."""

    def __init__(self, path: Path, shape: tuple[int, int, int, int]):
        self.path, self.images = path, _mapped(path, shape)
        self.sums = np.zeros(shape[0], np.uint32)

    def __setitem__(self, k: int, picture: np.ndarray) -> None:
        self.images[k] = picture
        self.sums[k] = zlib.crc32(np.ascontiguousarray(picture))

    def finish(self) -> None:
        self.images.flush()
        with open(self.path, "ab") as file:
            _end(file, np.zeros(0, np.int64), self.sums)


class Growing:
    """Pictures (C, H, W) to be written one after the other: how many there are is known, and written, at the end."""

    def __init__(self, file: BinaryIO, shape: tuple[int, int, int]):
        self.file, self.shape, self.sums = file, shape, []
        self.start = self._header(0)

    def _header(self, n: int) -> int:
        header = {"descr": "|u1", "fortran_order": False, "shape": (n, *self.shape)}
        np.lib.format.write_array_header_1_0(self.file, header)  # leaves room for the first number to grow
        return self.file.tell()

    def write(self, picture: np.ndarray) -> None:
        picture = np.ascontiguousarray(picture)
        self.file.write(picture)
        self.sums.append(zlib.crc32(picture))

    def finish(self, labels: np.ndarray) -> None:
        self.file.seek(0)
        assert self._header(len(labels)) == self.start
        self.file.seek(0, os.SEEK_END)
        _end(self.file, labels, np.array(self.sums, np.uint32))


def _end(file: BinaryIO, labels: np.ndarray, sums: np.ndarray) -> None:
    np.save(file, labels)
    np.save(file, np.append(sums, np.uint32(zlib.crc32(labels))))
    file.flush()


def _mapped(path: Path, shape: tuple[int, int, int, int]) -> np.memmap:
    """A new .npy file; its room on the disk is taken now, for a map that runs out of it ends the process."""
    try:
        images = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
        with open(path, "r+b") as file:
            preallocate(file.fileno(), path.stat().st_size)
    except OSError as error:
        size = math.prod(shape) / 2**20
        raise UserError(Exit.OUTPUT, f"{path.parent} cannot hold {size:,.0f} MiB: {error.strerror}") from None
    return images


def read(path: Path, count: int | None, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pictures (N, *shape), memory-mapped, their labels (none but of a stream) and their sums (N,).

    Pictures are compared with their sums when their fingerprint is computed (`ImageStore.fingerprint`).

    Args:
        count: N, if it is known.

    Raises:
        UserError: exit 3 for a file that is not whole, or not of these pictures.
    """
    try:
        images = np.load(path, mmap_mode="r")
        with open(path, "rb") as file:
            file.seek(images.offset + images.nbytes)
            labels, sums = np.load(file), np.load(file)
            whole = not file.read(1) and len(sums) == len(images) + 1 and sums[-1] == zlib.crc32(labels)
        whole &= images.dtype == np.uint8 and images.shape == (len(images) if count is None else count, *shape)
        whole &= len(labels) == (len(images) if count is None else 0)
    except Exception as error:  # numpy takes a header for Python, and raises what that does
        if isinstance(error, OSError) and error.errno:  # not allowed to read it; a disk that fails
            raise UserError(Exit.DATA, f"{path}: {error.strerror}") from None
        whole = False
    if not whole:
        raise damaged(path)
    return images, labels, sums[:-1]


def damaged(path: Path) -> UserError:
    return UserError(Exit.DATA, f"{path} is damaged: remove it, and the pictures are decoded again")
