"""Tables that can be read from any row on: row groups of parquet files, ranges of an Arrow table."""

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from diffusion_lit.data.decoding import Encoded
from diffusion_lit.data.sources.data_source import file_state
from diffusion_lit.system.console import join_names
from diffusion_lit.system.errors import DataError
from diffusion_lit.system.files import digest_text, write_atomically

READ_ROWS = 64  # rows that are read at once
READ_BYTES = 2**20  # bytes of a column that are read at once, so that large row groups are never in memory as a whole
LabeledImage = tuple[Path | Encoded, int]
MakeItem = Callable[[int, object, object], LabeledImage]  # from row number, image value and label value


@dataclass(frozen=True)
class RowRange:
    """Consecutive rows of one row group.

    Args:
        file: number of the file.
        group: number of the row group in it.
        start: first row, counted in the row group.
        count: number of rows.
        row: first row, counted in the split.
    """

    file: int
    group: int
    start: int
    count: int
    row: int

    def cut(self, count: int) -> "tuple[RowRange, RowRange]":
        """Return the first `count` rows, and the others."""
        rest = replace(self, start=self.start + count, count=self.count - count, row=self.row + count)
        return replace(self, count=count), rest


@dataclass(frozen=True)
class ArrowRows:
    """A `datasets.Dataset` of undecoded columns, the image first.

    Args:
        table: the dataset.
        name: what messages call it.
        make_item: makes an image and its label of a row.
    """

    table: object
    name: str
    make_item: MakeItem
    is_remote = False

    @property
    def fingerprint(self) -> str:
        """Return the digest that `datasets` keeps of the table."""
        return self.table._fingerprint

    def __len__(self) -> int:
        return len(self.table)

    def list_ranges(self, n: int) -> list[RowRange]:
        """Return the ranges of the first n rows."""
        return [RowRange(0, 0, k, min(READ_ROWS, n - k), k) for k in range(0, n, READ_ROWS)]

    def identify_range(self, rows: RowRange) -> tuple[str, int]:
        """Return what stays the same of a range when rows are appended, and how many rows it has at most."""
        return str(rows.start), READ_ROWS

    def read_rows(self, rows: RowRange, skip: int) -> Iterator[LabeledImage]:
        """Yield the rows of a range without the first `skip`."""
        columns = self.table[rows.start + skip : rows.start + rows.count].values()
        yield from _make_items(columns, rows.row + skip, self.make_item)


@dataclass(frozen=True)
class ParquetRows:
    """Parquet files, local or on the hub (hf://...).

    Args:
        files: their paths or URLs.
        columns: the image, and the label if there is one.
        name: what messages call them.
        make_item: makes an image and its label of a row.
        groups: rows of each row group, by file.
        digests: of the metadata of each row group, by file.
        fingerprint: of the metadata of the files, and of the columns.
    """

    files: list[str]
    columns: list[str]
    name: str
    make_item: MakeItem
    groups: list[list[int]]
    digests: list[list[str]]
    fingerprint: str

    @property
    def is_remote(self) -> bool:
        """Return whether the files are read over the network."""
        return "://" in self.files[0]

    def __len__(self) -> int:
        return sum(map(sum, self.groups))

    def list_ranges(self, n: int) -> list[RowRange]:
        """Return the row groups, as far as they belong to the first n rows."""
        ranges, row = [], 0
        for file, groups in enumerate(self.groups):
            for group, count in enumerate(groups):
                if row < n and count:
                    ranges.append(RowRange(file, group, 0, min(count, n - row), row))
                row += count
        return ranges

    def identify_range(self, rows: RowRange) -> tuple[str, int]:
        """Return what stays the same of a row group when files are added, and how many rows it has."""
        return self.digests[rows.file][rows.group], self.groups[rows.file][rows.group]

    def read_rows(self, rows: RowRange, skip: int) -> Iterator[LabeledImage]:
        """Yield the rows of a range without the first `skip`, and perhaps more of its row group after it."""
        skip, row = rows.start + skip, rows.row - rows.start
        with _open_parquet(self.files[rows.file]) as file:
            for batch in file.iter_batches(READ_ROWS, [rows.group], self.columns, use_threads=False):
                if skip < len(batch):
                    columns = [batch.column(name)[skip:].to_pylist() for name in self.columns]
                    yield from _make_items(columns, row + skip, self.make_item)
                row, skip = row + len(batch), max(0, skip - len(batch))


def _make_items(columns, row: int, make_item: MakeItem) -> Iterator[LabeledImage]:
    for k, (image, *label) in enumerate(zip(*columns, strict=True), row):
        yield make_item(k, image, label[0] if label else 0)


def read_row_groups(
    files: list[str], columns: Sequence[str], cache_dir: Path | None
) -> tuple[list[list[int]], list[list[str]], str]:
    """Return rows and digest of each row group, by file, and a fingerprint of all, of their metadata.

    Only the metadata at the ends of the files is read, and with `cache_dir` only
    once.

    Raises:
        DataError: if a file is damaged, or lacks one of the columns.
    """
    states = [*columns, *(file if "://" in file else file_state(Path(file)) for file in files)]
    key = digest_text("\0".join(states))
    cached = cache_dir / f"parts-{key}.json" if cache_dir else None
    if cached:
        with suppress(OSError, ValueError):  # missing, or damaged
            groups, digests, digest = json.loads(cached.read_bytes())
            return groups, digests, digest
    with ThreadPoolExecutor(16) as pool:
        metadata = list(pool.map(partial(_read_metadata, columns=columns), files))
    groups, digests = ([one[k] for one in metadata] for k in range(2))
    text = repr([(Path(file).name, own) for file, own in zip(files, digests, strict=True)])
    result = groups, digests, digest_text(text)
    if cached:
        with suppress(OSError):  # a read-only folder; the metadata is read again the next time
            cached.parent.mkdir(parents=True, exist_ok=True)
            with write_atomically(cached, concurrent=True) as building:
                building.write_text(json.dumps(result), encoding="utf-8")
    return result


def _read_metadata(url: str, columns: Sequence[str]) -> tuple[list[int], list[str]]:
    """Return the rows of each row group, and a digest of sizes and statistics of all its columns."""
    with _open_parquet(url) as file:
        names = file.schema_arrow.names
        if missing := [name for name in columns if name not in names]:
            raise DataError(
                f"{url}: no column {' and '.join(missing)}, which other files have. It has {join_names(names)}."
            )
        groups = [file.metadata.row_group(k) for k in range(file.metadata.num_row_groups)]
        described = [[_describe_column(group.column(k)) for k in range(group.num_columns)] for group in groups]
        return [group.num_rows for group in groups], [digest_text(repr(one)) for one in described]


def _describe_column(column) -> tuple:
    # a selection, since other versions of pyarrow report more
    sizes = column.num_values, column.total_uncompressed_size, column.total_compressed_size, column.data_page_offset
    statistics = column.statistics
    limits = (statistics.min, statistics.max) if statistics and statistics.has_min_max else None
    return column.path_in_schema, sizes, limits


@contextmanager
def _open_parquet(url: str):
    import fsspec
    import pyarrow.parquet as pq

    with ExitStack() as stack:
        file = stack.enter_context(fsspec.open(url)) if "://" in url else url
        yield stack.enter_context(pq.ParquetFile(file, buffer_size=READ_BYTES, pre_buffer=False))
