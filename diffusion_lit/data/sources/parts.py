"""Tables of pictures that can be read from any part on: row groups of parquet files, stretches of an Arrow table."""

import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from diffusion_lit.data.decoding import Encoded
from diffusion_lit.data.sources.folder import file_state
from diffusion_lit.system.files import write_atomically

ROWS = 64  # read at once
BUFFER = 2**20  # bytes of a column, read at once: row groups of any size are never held whole
Row = tuple[Path | Encoded, int]  # a picture, and its label


@dataclass(frozen=True)
class Part:
    """`count` rows of row group `group` of a file, from its row `start` on; the first is row `row` of the split."""

    file: int
    group: int
    start: int
    count: int
    row: int

    def cut(self, at: int) -> "tuple[Part, Part]":
        rest = replace(self, start=self.start + at, count=self.count - at, row=self.row + at)
        return replace(self, count=at), rest


@dataclass(frozen=True)
class ArrowRows:
    """A `datasets.Dataset` of undecoded columns, the picture first."""

    table: object
    where: str
    row: Callable[[int, object, object], Row]
    remote: bool = False

    @property
    def fingerprint(self) -> str:
        return self.table._fingerprint

    def __len__(self) -> int:
        return len(self.table)

    def parts(self, most: int) -> list[Part]:
        """Of the first so many rows."""
        return [Part(0, 0, k, min(ROWS, most - k), k) for k in range(0, most, ROWS)]

    def read(self, part: Part, skip: int) -> Iterator[Row]:
        """Rows of a part without the first `skip`; more may follow."""
        columns = self.table[part.start + skip : part.start + part.count].values()
        for k, values in enumerate(zip(*columns, strict=True), part.row + skip):
            yield self.row(k, *values) if len(values) > 1 else self.row(k, *values, 0)


@dataclass(frozen=True)
class ParquetRows:
    """Parquet files, here or on the hub (hf://...).

    Args:
        columns: the picture, and the label if there is one.
        groups: rows of each row group, by file.
        fingerprint: of what the files say of themselves at their ends, and of the columns.
    """

    files: list[str]
    columns: list[str]
    where: str
    row: Callable[[int, object, object], Row]
    groups: list[list[int]]
    fingerprint: str

    @property
    def remote(self) -> bool:
        return "://" in self.files[0]

    def __len__(self) -> int:
        return sum(map(sum, self.groups))

    def parts(self, most: int) -> list[Part]:
        found, row = [], 0
        for file, groups in enumerate(self.groups):
            for group, rows in enumerate(groups):
                if row < most and rows:
                    found.append(Part(file, group, 0, min(rows, most - row), row))
                row += rows
        return found

    def read(self, part: Part, skip: int) -> Iterator[Row]:
        before = part.start + skip  # rows of the group that are not wanted
        row = part.row - part.start
        with _opened(self.files[part.file]) as file:
            for batch in file.iter_batches(ROWS, [part.group], self.columns, use_threads=False):
                columns = [batch.column(name)[before:].to_pylist() for name in self.columns if before < len(batch)]
                for k, values in enumerate(zip(*columns, strict=True), row + before):
                    yield self.row(k, *values) if len(values) > 1 else self.row(k, *values, 0)
                row, before = row + len(batch), max(0, before - len(batch))


def parquet_groups(files: list[str], cache_dir: Path | None) -> tuple[list[list[int]], str]:
    """Rows of each row group, by file, and a fingerprint of them and their places. Only the ends of the files are read,
    and with `cache_dir` only once.
    """
    states = [file if "://" in file else file_state(Path(file)) for file in files]
    key = hashlib.blake2b("\0".join(states).encode(errors="surrogateescape"), digest_size=8).hexdigest()
    kept = cache_dir / f"parts-{key}.json" if cache_dir else None
    if kept:
        with suppress(OSError, ValueError):  # not there, or damaged
            groups, digest = json.loads(kept.read_text())
            return groups, digest
    with ThreadPoolExecutor(16) as pool:
        ends = list(pool.map(_end, files))
    words = repr([(Path(file).name, digest) for file, (_, digest) in zip(files, ends, strict=True)])
    found = [rows for rows, _ in ends], hashlib.blake2b(words.encode(), digest_size=8).hexdigest()
    if kept:
        with suppress(OSError):  # a folder that cannot be written; then they are read again the next time
            kept.parent.mkdir(parents=True, exist_ok=True)
            with write_atomically(kept, many=True) as building:
                building.write_text(json.dumps(found))
    return found


def _end(url: str) -> tuple[list[int], str]:
    with _opened(url) as file:
        groups = [file.metadata.row_group(k) for k in range(file.metadata.num_row_groups)]
        columns = [group.column(k) for group in groups for k in range(group.num_columns)]
        digest = hashlib.blake2b(repr([_facts(column) for column in columns]).encode(), digest_size=8)
        return [group.num_rows for group in groups], digest.hexdigest()


def _facts(column) -> tuple:
    """Not all that pyarrow says of a column of a row group: another version of it says more."""
    sizes = column.num_values, column.total_uncompressed_size, column.total_compressed_size, column.data_page_offset
    found = column.statistics
    return column.path_in_schema, sizes, (found.min, found.max) if found and found.has_min_max else None


@contextmanager
def _opened(url: str):
    import fsspec
    import pyarrow.parquet as pq

    with ExitStack() as stack:
        file = stack.enter_context(fsspec.open(url)) if "://" in url else url
        yield stack.enter_context(pq.ParquetFile(file, buffer_size=BUFFER, pre_buffer=False))
