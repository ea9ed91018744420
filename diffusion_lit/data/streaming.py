"""Images that fit nowhere: read again in every epoch, in an order that is a function of the seed and the position.

A table is read in ranges of rows (row groups of parquet files, ranges of an
Arrow table). An epoch puts all ranges in a random order, cuts this sequence
into `LANES` equal lanes, which are read in parallel, one image of each in turn,
and shuffles every `WINDOW` images that arrive so. Every image comes once in an
epoch, any position is found by counting, and the memory does not grow with the
data set.

How well this shuffles: a window holds `LANES` runs of `WINDOW` / `LANES` neighboring rows,
from other places in each epoch. With row groups of a hundred images that is as good as a
full shuffle. A data set that is sorted by class and has large row groups should be written
again in a random order.
"""

import hashlib
import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np

from diffusion_lit.data.decoding import Decoding, Encoded
from diffusion_lit.data.sources.hf_tables import shorten_error
from diffusion_lit.data.sources.row_groups import ArrowRows, LabeledImage, ParquetRows, RowRange
from diffusion_lit.data.validation_split import NO_HASHES
from diffusion_lit.diffusion.seeds import item_seed
from diffusion_lit.system.errors import Exit, UserError
from diffusion_lit.system.files import digest_text

log = logging.getLogger(__name__)
EVERY_EPOCH = "every_epoch"  # the value of `data.streaming`
LANES = 8
WINDOW = 2048
VAL_ROWS = 32  # images for validation that are read of a range, if any are
MAX_VAL_IMAGES = 5000
RETRY_WAITS = (1, 5, 25)  # seconds before a range that could not be read is tried again
NumberedImage = tuple[int, Path | Encoded, int]  # number in the data set, image, label


@dataclass(frozen=True)
class StreamedTable:
    """Images of ranges of a table. It is an `ImageStream` too, in the order of the table.

    Args:
        table: what is read.
        ranges: which rows of it.
    """

    table: ArrowRows | ParquetRows
    ranges: list[RowRange]

    @cached_property
    def counts(self) -> np.ndarray:
        """Return the number of images in each range, int64."""
        return np.array([rows.count for rows in self.ranges], dtype=np.int64)

    @property
    def total(self) -> int:
        """Return the number of images."""
        return int(self.counts.sum())

    def __len__(self) -> int:
        return self.total

    @property
    def fingerprint(self) -> str:
        """Return a digest of the table and the ranges."""
        return digest_text(f"{self.table.fingerprint} {[astuple(rows) for rows in self.ranges]}")

    def on_cached(self) -> None:
        """Do nothing."""

    def __iter__(self) -> Iterator[LabeledImage]:
        for rows in self.ranges:
            yield from self._read_range(rows)

    def split_validation(self, fraction: float, most: int) -> "tuple[StreamedTable, StreamedTable]":
        """Return the training images, and the first ones of some ranges, at most `most`, for validation.

        Which ranges and how many of their images follows from a hash of each range,
        so that ranges that are added move no image of another, unless there are
        more than `most`.
        """
        counts = self.counts
        taken = np.array([self._count_validation(k, fraction) for k in range(len(counts))], np.int64)
        if fraction and not taken.any():
            nearest = int(np.argmin(self._places[:, 0]))
            taken[nearest] = min(VAL_ROWS, counts[nearest], len(self) - 1)
        if (taken == counts).all():
            taken[int(np.argmax(self._places[:, 0]))] -= 1
        return self._cut(taken, most)

    def limit(self, most: int) -> "StreamedTable":
        """Return the first `most` images in an order of the ranges by their hashes."""
        return self._cut(self.counts, most)[1]

    @cached_property
    def _places(self) -> np.ndarray:
        """Return two hashes of each range as numbers in [0, 1), (N, 2)."""
        texts = [self.table.identify_range(rows)[0].encode() for rows in self.ranges]
        digests = b"".join(hashlib.blake2b(text, digest_size=8).digest() for text in texts)
        return np.frombuffer(digests, ">u4").reshape(-1, 2) / 2**32

    def _count_validation(self, k: int, fraction: float) -> int:
        """Return how many images of range k are for validation: none, or enough to be worth reading it."""
        size, (place, rounding) = self.table.identify_range(self.ranges[k])[1], self._places[k]
        share = min(1.0, max(fraction, VAL_ROWS / size))
        return min(int(size * share + rounding), self.ranges[k].count) if place < fraction / share else 0

    def _cut(self, taken: np.ndarray, most: int) -> "tuple[StreamedTable, StreamedTable]":
        """Return all but the first images of each range, and those, at most `most` of all."""
        order = np.argsort(self._places[:, 0], kind="stable")
        before = np.cumsum(taken[order]) - taken[order]
        kept = np.empty_like(taken)
        kept[order] = np.clip(most - before, 0, taken[order])
        cut = [rows.cut(int(count)) for rows, count in zip(self.ranges, kept, strict=True)]
        val, train = ([rows for rows in side if rows.count] for side in zip(*cut, strict=True))
        return StreamedTable(self.table, train), StreamedTable(self.table, val)

    def iterate(self, seed: int, position: int) -> Iterator[NumberedImage]:
        """Yield the images from a position of the endless stream on; a thread reads one window ahead."""
        windows = self._shuffled_windows(seed, position)
        reader = ThreadPoolExecutor(1)
        try:
            ahead = reader.submit(next, windows)
            while True:
                window = ahead.result()
                ahead = reader.submit(next, windows)
                yield from window
        finally:
            reader.shutdown(wait=False, cancel_futures=True)

    def _shuffled_windows(self, seed: int, position: int) -> Iterator[list[NumberedImage]]:
        """Yield windows from the one of `position` on, the first without the images before it."""
        n = len(self)
        epoch, start = divmod(position, n)
        per_epoch = -(-n // WINDOW)
        while True:
            first = start // WINDOW
            rows = self._interleave_lanes(seed, epoch, first * WINDOW)
            for k in range(first, per_epoch):
                window = list(islice(rows, WINDOW))
                random = np.random.Generator(np.random.PCG64(item_seed(seed, "window", epoch * per_epoch + k)))
                order = random.permutation(len(window))
                yield [window[i] for i in order[max(0, start - k * WINDOW) :]]
            epoch, start = epoch + 1, 0

    def _interleave_lanes(self, seed: int, epoch: int, start: int) -> Iterator[NumberedImage]:
        """Yield the images of an epoch before windows are shuffled, without the first `start`."""
        order = np.random.Generator(np.random.PCG64(item_seed(seed, "parts", epoch))).permutation(len(self.ranges))
        lanes, begin = [], 0
        for lane in range(LANES):
            end = begin + len(range(lane, len(self), LANES))
            lanes.append(self._read_lane(order, begin + len(range(lane, start, LANES)), end))
            begin = end
        for k in range(start, len(self)):
            yield next(lanes[k % LANES])

    def _read_lane(self, order: np.ndarray, start: int, end: int) -> Iterator[NumberedImage]:
        """Yield images start to end - 1 of all ranges in this order."""
        ends = np.cumsum(self.counts[order])
        firsts = np.cumsum(self.counts) - self.counts
        k = int(np.searchsorted(ends, start, side="right"))
        while start < end:
            skip = start - int(ends[k] - self.counts[order[k]])
            rows = islice(self._read_range(self.ranges[order[k]], skip), end - start)
            for number, (image, label) in enumerate(rows, int(firsts[order[k]]) + skip):
                yield number, image, label
            start, k = int(ends[k]), k + 1

    def _read_range(self, rows: RowRange, skip: int = 0) -> Iterator[LabeledImage]:
        """Yield the images of a range without the first `skip`. Where reading breaks off, it is tried again."""
        waits = iter(RETRY_WAITS)
        while skip < rows.count:
            try:
                for item in islice(self.table.read_rows(rows, skip), rows.count - skip):
                    skip, waits = skip + 1, iter(RETRY_WAITS)
                    yield item
                if skip < rows.count:
                    raise EOFError("it ends too early")
            except UserError:
                raise
            except Exception as error:  # of the network, of parquet, of fsspec
                message = f"{self.table.name}: broke off at row {rows.row + skip} ({shorten_error(error)})"
                wait = next(waits, None)
                if wait is None:
                    code = Exit.INTERRUPTED if self.table.is_remote else Exit.DATA
                    message = f"{message}, also on the last retry. Resume the run to go on from its last checkpoint."
                    raise UserError(code, message) from None
                log.warning("%s, trying again in %d s", message, wait)
                time.sleep(wait)


@dataclass(frozen=True)
class StreamedStore:
    """The training images of a run that reads them in every epoch, in place of an `ImageStore`.

    Args:
        table: the images.
        decoding: how they are decoded.
    """

    table: StreamedTable
    decoding: Decoding
    hashes = NO_HASHES  # the images are not read before training
    captions = None

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def fingerprint(self) -> str:
        """Return 16 hex digits of which rows the table has where, and of the decoding; not of the pixels."""
        return digest_text(f"{self.table.fingerprint} {astuple(self.decoding)}")
