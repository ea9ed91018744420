"""Pictures that fit nowhere: read anew in every epoch, in an order that is a function of the seed and the position.

A table is read in parts (row groups of parquet files, stretches of an Arrow table), each from its front. In an epoch
all parts stand in a random order; this long row is cut into `LANES` equal lanes, which are read side by side, one
picture of each in turn; and every `WINDOW` pictures that come so are put in a random order once more. So every picture
comes once in an epoch, any position is found by counting, and what is in memory does not grow with the set.

How good a shuffle it is: a window holds `LANES` stretches of `WINDOW` / `LANES` neighbours, from places that are others
in each epoch. With row groups of a hundred pictures that is as good as any; a set that was written in the order of its
classes, with large row groups, is better written anew in a random order.
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
from diffusion_lit.data.sources.parts import ArrowRows, ParquetRows, Part, Row
from diffusion_lit.data.sources.tables import short
from diffusion_lit.diffusion.seeds import counted
from diffusion_lit.system.errors import Exit, UserError

log = logging.getLogger(__name__)
EVERY_EPOCH = "every_epoch"  # `data.streaming`
LANES = 8
WINDOW = 2048
PLACES = 32  # in a set from which held-out pictures are taken
MOST_HELD_OUT = 5000
WAITS = (1, 5, 25)  # seconds before a part that could not be read is tried again


@dataclass(frozen=True)
class Anew:
    """Pictures of parts of a table. It is a `Stream` too, in the order of the table."""

    table: ArrowRows | ParquetRows
    parts: list[Part]

    @cached_property
    def counts(self) -> np.ndarray:
        return np.array([part.count for part in self.parts], dtype=np.int64)

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    def __len__(self) -> int:
        return self.total

    @property
    def fingerprint(self) -> str:
        words = f"{self.table.fingerprint} {[astuple(part) for part in self.parts]}"
        return hashlib.blake2b(words.encode(), digest_size=8).hexdigest()

    def remember(self) -> None: ...

    def __iter__(self) -> Iterator[Row]:
        for part in self.parts:
            yield from self._rows(part)

    def hold_out(self, wanted: int) -> "tuple[Anew, Anew]":
        """All but `wanted` pictures, and those: the first ones of some parts, the same in every run."""
        order = np.random.Generator(np.random.PCG64(len(self))).permutation(len(self.parts))
        taken = np.zeros(len(self.parts), np.int64)
        each = -(-wanted // min(PLACES, len(self.parts)))
        while left := wanted - taken.sum():
            for k in order:
                taken[k] += (more := min(each, self.counts[k] - taken[k], left))
                left -= more
        pieces = [part.cut(int(at)) for part, at in zip(self.parts, taken, strict=True)]
        kept = [[part for part in side if part.count] for side in zip(*pieces, strict=True)]
        return Anew(self.table, kept[1]), Anew(self.table, kept[0])

    def walk(self, seed: int, position: int) -> Iterator[tuple[int, Path | Encoded, int]]:
        """(number in the set, picture, label) of the pictures at positions `position`, + 1, ... for ever; one window is
        read ahead, in a thread.
        """
        windows = self._windows(seed, position)
        reader = ThreadPoolExecutor(1)
        try:
            ahead = reader.submit(next, windows)
            while True:
                window = ahead.result()
                ahead = reader.submit(next, windows)
                yield from window
        finally:
            reader.shutdown(wait=False, cancel_futures=True)

    def _windows(self, seed: int, position: int) -> Iterator[list[tuple[int, Path | Encoded, int]]]:
        """Windows from the one of `position` on, the first without what comes before it."""
        n = len(self)
        epoch, place = divmod(position, n)
        of_an_epoch = -(-n // WINDOW)
        while True:
            first = place // WINDOW
            rows = self._interleaved(seed, epoch, first * WINDOW)
            for number in range(first, of_an_epoch):
                window = list(islice(rows, WINDOW))
                draws = np.random.Generator(np.random.PCG64(counted(seed, "window", epoch * of_an_epoch + number)))
                order = draws.permutation(len(window))
                yield [window[k] for k in order[max(0, place - number * WINDOW) :]]
            epoch, place = epoch + 1, 0

    def _interleaved(self, seed: int, epoch: int, start: int) -> Iterator[tuple[int, Path | Encoded, int]]:
        """The rows of an epoch before windows are drawn from them, without the first `start`."""
        order = np.random.Generator(np.random.PCG64(counted(seed, "parts", epoch))).permutation(len(self.parts))
        lengths = [len(range(lane, len(self), LANES)) for lane in range(LANES)]
        ends = np.cumsum(lengths)
        skipped = [len(range(lane, start, LANES)) for lane in range(LANES)]
        lanes = [
            self._lane(order, int(end - length + skip), int(end))
            for end, length, skip in zip(ends, lengths, skipped, strict=True)
        ]
        for place in range(start, len(self)):
            yield next(lanes[place % LANES])

    def _lane(self, order: np.ndarray, start: int, end: int) -> Iterator[tuple[int, Path | Encoded, int]]:
        """Rows start .. end - 1 of all parts in this order."""
        ends = np.cumsum(self.counts[order])
        firsts = np.cumsum(self.counts) - self.counts
        k = int(np.searchsorted(ends, start, side="right"))
        while start < end:
            skip = start - int(ends[k] - self.counts[order[k]])
            rows = islice(self._rows(self.parts[order[k]], skip), end - start)
            for number, (picture, label) in enumerate(rows, int(firsts[order[k]]) + skip):
                yield number, picture, label
            start, k = int(ends[k]), k + 1

    def _rows(self, part: Part, skip: int = 0) -> Iterator[Row]:
        """Rows of a part; what breaks off is tried again from there."""
        waits = iter(WAITS)
        while skip < part.count:
            try:
                for row in islice(self.table.read(part, skip), part.count - skip):
                    skip, waits = skip + 1, iter(WAITS)
                    yield row
                if skip < part.count:
                    raise EOFError("it ends too early")
            except UserError:
                raise
            except Exception as error:  # of the network, of parquet, of fsspec
                told = f"{self.table.where}: broke off at row {part.row + skip} ({short(error)})"
                wait = next(waits, None)
                if wait is None:
                    told = f"{told}, also when tried again; a run goes on from its last checkpoint"
                    raise UserError(Exit.INTERRUPTED if self.table.remote else Exit.DATA, told) from None
                log.warning("%s; trying again in %d s", told, wait)
                time.sleep(wait)


class Reread:
    """A `Stream` that can be read in every epoch anew."""

    def anew(self, cache_dir: str | None) -> Anew:
        """Its parts; what is known of them is kept in `cache_dir`."""
        raise NotImplementedError


@dataclass(frozen=True)
class Streamed:
    """The training pictures of a run that reads them anew in every epoch; in the place of an `ImageStore`."""

    pictures: Anew
    decoding: Decoding

    def __len__(self) -> int:
        return len(self.pictures)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of where the table has which rows, and how they are decoded; not of their pixels."""
        words = f"{self.pictures.fingerprint} {astuple(self.decoding)}"
        return hashlib.blake2b(words.encode(), digest_size=8).hexdigest()
