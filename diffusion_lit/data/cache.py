"""The files of `data.cache_dir`: four arrays, one after the other, each as `np.save` writes it.

1. The decoded images, uint8 (N, C, H, W), which are memory-mapped.
2. The labels of a stream, int64 (N,); empty for other sources, which have their own.
3. Hashes of the images before they were decoded, uint64 (N,).
4. CRC-32 checksums, uint32 (N + 2,), of every image, of the labels and of the hashes.
"""

import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from diffusion_lit.system.errors import DataError, OutputError
from diffusion_lit.system.platform import preallocate


class CacheWriter:
    """Writes images to a cache file one after the other.

    Args:
        file: an empty file, open for writing.
        shape: (C, H, W).
        total: number of images, for which disk space is reserved; None if it is not known
            yet.

    Raises:
        UserError: exit 5 if the disk has no space for `total` images.
    """

    def __init__(self, file: BinaryIO, shape: tuple[int, int, int], total: int | None = None):
        self.file, self.shape, self.checksums = file, shape, []
        self.start = self._write_header(0)
        if total:
            size = total * math.prod(shape)
            try:
                preallocate(file.fileno(), self.start + size)
            except OSError as error:
                folder, mib = Path(file.name).parent, size / 2**20
                raise OutputError(f"{folder} cannot hold {mib:,.0f} MiB: {error.strerror}") from None

    def _write_header(self, n: int) -> int:
        header = {"descr": "|u1", "fortran_order": False, "shape": (n, *self.shape)}
        np.lib.format.write_array_header_1_0(self.file, header)  # leaves space for the first number to grow
        return self.file.tell()

    def write(self, image: np.ndarray) -> None:
        """Append an image, uint8 (C, H, W)."""
        image = np.ascontiguousarray(image)
        self.file.write(image)
        self.checksums.append(zlib.crc32(image))

    def finish(self, labels: np.ndarray, hashes: np.ndarray) -> None:
        """Write the number of images, the labels (of a stream, else empty), the hashes and the checksums."""
        self.file.seek(0)
        assert self._write_header(len(self.checksums)) == self.start
        self.file.seek(self.start + len(self.checksums) * math.prod(self.shape))
        np.save(self.file, labels)
        np.save(self.file, hashes)
        np.save(self.file, np.array([*self.checksums, zlib.crc32(labels), zlib.crc32(hashes)], np.uint32))
        self.file.flush()


def read_cache(path: Path, count: int | None, shape: tuple[int, int, int]) -> tuple[np.ndarray, ...]:
    """Return images (N, *shape), memory-mapped, the labels of a stream, hashes (N,) and checksums (N,).

    The images are compared with their checksums when the fingerprint is computed
    (`ImageStore.fingerprint`).

    Args:
        path: the file.
        count: N; None for a stream.
        shape: (C, H, W).

    Raises:
        DataError: if the file is damaged, incomplete or holds something else.
    """

    def is_intact(images: np.ndarray, labels: np.ndarray, hashes: np.ndarray, checksums: np.ndarray) -> bool:
        n = len(images) if count is None else count
        expected = [np.uint8, (n, *shape), n if count is None else 0, n, n + 2, zlib.crc32(labels), zlib.crc32(hashes)]
        return [images.dtype, images.shape, len(labels), len(hashes), len(checksums), *checksums[-2:]] == expected

    images, labels, hashes, checksums = read_arrays(path, 4, is_intact)
    return images, labels, hashes, checksums[:-2]


def read_arrays(
    path: Path, count: int, is_intact: Callable[..., bool], advice: str = "the images are decoded again"
) -> list[np.ndarray]:
    """Return arrays that `np.save` has written one after the other, the first one memory-mapped.

    Args:
        path: the file.
        count: number of arrays.
        is_intact: whether these arrays are what was written.
        advice: what happens if the file is removed.

    Raises:
        DataError: if the file is damaged, incomplete or holds something else.
    """
    try:
        arrays = [np.load(path, mmap_mode="r")]
        with open(path, "rb") as file:
            file.seek(arrays[0].offset + arrays[0].nbytes)
            arrays += [np.load(file) for _ in range(count - 1)]
            if not file.read(1) and is_intact(*arrays):
                return arrays
    except Exception as error:  # numpy parses a header as Python, and raises what that does
        if isinstance(error, OSError) and error.errno:  # permissions, a failing disk
            raise DataError(f"{path}: {error.strerror}") from None
    raise damaged_cache(path, advice)


def damaged_cache(path: Path, advice: str = "the images are decoded again") -> DataError:
    """Return the error of a damaged cache file."""
    return DataError(f"{path} is damaged. Remove it, and {advice}.")
