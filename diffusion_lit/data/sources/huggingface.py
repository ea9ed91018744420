"""Hugging Face data sets: of the hub, a folder of images, parquet files, or a `save_to_disk` folder.

`datasets` finds and reads the tables. Their images stay encoded, and are decoded like those
of every other source, by `diffusion_lit.data.decoding`. The column of images is recognized
by its type, not by its name.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np

from diffusion_lit.data.sources import hf_tables
from diffusion_lit.data.sources.data_source import Split, file_state
from diffusion_lit.data.sources.hf_captions import read_captions
from diffusion_lit.data.sources.hf_tables import shorten_error
from diffusion_lit.data.sources.listing import list_files
from diffusion_lit.data.sources.row_groups import ArrowRows, LabeledImage, ParquetRows, read_row_groups
from diffusion_lit.data.sources.selection import match_classes
from diffusion_lit.data.sources.table_labels import describe_unused_columns
from diffusion_lit.data.streaming import EVERY_EPOCH, StreamedTable
from diffusion_lit.system.console import join_names
from diffusion_lit.system.errors import DataError
from diffusion_lit.system.files import normalize_name, write_atomically

VAL_SPLITS = ("validation", "val", "valid", "test")  # the first that exists is used


@dataclass(frozen=True)
class TableSchema:
    """What is known of a data set before its images are read.

    Args:
        train: name of the training split.
        val: names of splits that can be the validation split, the best first.
        image: name of the image column.
        label: name of the label column, or None.
        values: label values, in the order of the classes.
        class_names: of each value, as they are stored.
    """

    train: str
    val: list[str]
    image: str
    label: str | None
    values: list
    class_names: list[str]


class HuggingFace:
    """A Hugging Face data set, as a table on disk or as a stream.

    Args:
        path: an id of the hub, a folder (images, parquet files or `save_to_disk`), or a
            parquet file.
        name: of its configuration, where it has several.
        split: what `load_dataset` takes; None: train, and the first of `VAL_SPLITS` for
            validation.
        image_column: "auto" or a name, see `find_image_column`.
        label_column: "auto", a name or "none", see `find_label_column`.
        caption_column: "auto", a name or "none", see `read_captions`; not of a stream.
        streaming: True: read it once and keep only the decoded images. "every_epoch": keep
            nothing, and read it again in every epoch (parquet files and `save_to_disk`).
        max_images: only the first images of each split.
        cache_dir: also keeps what `datasets` makes of a set that is not streamed.
    """

    def __init__(
        self,
        path: str,
        name: str | None = None,
        split: str | None = None,
        image_column: str = "auto",
        label_column: str = "auto",
        streaming: bool | str = False,
        max_images: int | None = None,
        cache_dir: str | None = None,
        caption_column: str = "none",
    ):
        self.path, self.name, self.split = path, name, split
        self.image_column, self.label_column, self.caption_column = image_column, label_column, caption_column
        self.streaming, self.max_images = streaming, max_images
        self.cache_dir = Path(cache_dir).expanduser() if cache_dir else None

    @property
    def class_names(self) -> list[str]:
        """Return the class names, in NFC; empty without labels."""
        return list(dict.fromkeys(map(normalize_name, self.schema.class_names)))

    @property
    def notes(self) -> list[str]:
        """Return notes on columns that could be labels, and images of a folder that no table has.

        Of a stream nothing is read.
        """
        if self.streaming:
            return []
        notes, schema = self._describe_unlisted(), self.schema
        if self.label_column == "auto":
            used = {schema.image, schema.label}
            columns = hf_tables.read_label_candidates(self.tables[schema.train], used)
            notes += describe_unused_columns(columns, is_unlabeled=schema.label is None)
        return notes

    def _describe_unlisted(self) -> list[str]:
        """Return a note on images of a folder that are in none of its tables, as those a metadata file leaves out."""
        files = list_files(Path(self.path)).images if Path(self.path).is_dir() and not self.split else []
        column, listed = self.schema.image, set()
        for table in map(hf_tables.select_undecoded, self.tables.values(), [column] * len(self.tables)):
            first = table[0][column] if files and len(table) else None
            if isinstance(first, dict) and first["bytes"] is None and first["path"]:  # others hold their images
                listed |= {os.path.realpath(value["path"]) for value in table[:][column] if value and value["path"]}
        unlisted = [str(file) for file in files if os.path.realpath(file) not in listed]
        note = f"{len(unlisted):,} images of {self.path} are in no table of it: {join_names(unlisted, 3)}"
        return [note] if listed and unlisted else []

    def splits(self) -> dict[str, Split]:
        """Return "train", and "val" if there is a validation or test split with labels."""
        schema = self.schema
        if self.streaming:
            stream = TableEpochStream if self.streaming == EVERY_EPOCH else TableStream
            names = {"train": schema.train} | ({"val": schema.val[0]} if schema.val else {})
            return {name: Split(stream(self, split), None) for name, split in names.items()}
        train = self._list_split(schema.train)
        missing = np.flatnonzero(train.labels < 0)
        if len(missing):
            raise DataError(
                f"data.path={self.path}: {len(missing):,} of {len(train.labels):,} labels in column {schema.label} are "
                f"missing (-1, empty or none), in row {join_names(map(str, missing), 5)}. Set data.label_column to "
                "another column, or to none to train without classes."
            )
        for name in schema.val:
            split = self._list_split(name)
            if (split.labels >= 0).all():  # test sets of competitions come without labels
                return {"train": train, "val": split}
        return {"train": train}

    @cached_property
    def schema(self) -> TableSchema:
        """Return splits, columns and classes; those of a stream that is cached are read from the cache."""
        if self.streaming and self._schema_file:
            with suppress(OSError, ValueError, TypeError):  # missing, or damaged
                return TableSchema(**json.loads(self._schema_file.read_bytes()))
        names = list(self.tables)
        if len(names) > 1 and "train" not in names:
            raise DataError(f"data.path={self.path}: no train split. Set data.split to one of {join_names(names)}.")
        train = "train" if "train" in names else names[0]
        table = self.tables[train]
        if table.features is None:
            raise DataError(f"data.path={self.path}: its columns are not declared. Set data.streaming=false.")
        image = hf_tables.find_image_column(self.image_column, table, self.path)
        label = hf_tables.find_label_column(self.label_column, table.features, self.path)
        val = [name for name in VAL_SPLITS if name in names and name != train]
        return TableSchema(train, val, image, label, *hf_tables.read_classes(table, label, self.path))

    @cached_property
    def numbers(self) -> dict:
        """Return the class number of each label value; without a label column all images are of class 0."""
        numbers = match_classes(self.schema.class_names, self.class_names)
        return dict(zip(self.schema.values, numbers.tolist(), strict=True)) or {0: 0}

    @cached_property
    def tables(self) -> dict:
        """Return a `datasets.Dataset` for each split, with streaming an `IterableDataset`."""
        streaming = bool(self.streaming) and not (self.streaming == EVERY_EPOCH and hf_tables.is_saved(self.path))
        return hf_tables.load_tables(self.path, self.name, self.split, streaming, self.cache_dir)

    def check_not_empty(self, n: int, split: str) -> None:
        """Raise DataError for a split without images."""
        if n == 0:
            raise DataError(f"data.path={self.path}: split {split} is empty")

    def _list_split(self, name: str) -> Split:
        table, schema = self.tables[name], self.schema
        n = min(len(table), self.max_images or len(table))
        self.check_not_empty(n, name)
        table = table if n == len(table) else table.select(range(n))
        images = hf_tables.TableImages(hf_tables.select_undecoded(table, schema.image), f"{self.path}, {name}")
        captions = read_captions(table, self.caption_column, f"{self.path}, {name}")
        if schema.label is None:
            return Split(images, np.zeros(n, dtype=np.int64), captions=captions)
        values = table.select_columns([schema.label]).with_format("arrow")[:].column(0).to_pylist()
        values = [None if hf_tables.is_missing(value) else value for value in values]
        numbers = self.numbers | {None: -1, -1: -1}
        unknown = sorted({str(value) for value in values if value not in numbers})
        if unknown:
            unknown = join_names(unknown)
            raise DataError(f"data.path={self.path}: split {name} has labels that are not in train: {unknown}")
        return Split(images, np.array([numbers[value] for value in values], dtype=np.int64), captions=captions)

    @cached_property
    def identity(self) -> str:
        """Return a digest of the arguments, and of the times of local files; nothing is fetched for it."""
        path = Path(self.path).expanduser()
        arguments = [self.path, self.name, self.split, self.image_column, self.label_column, self.max_images]
        digest = hashlib.blake2b(repr(arguments).encode(), digest_size=8)
        for file in sorted(path.rglob("*")) if path.is_dir() else [path] if path.exists() else []:
            digest.update(file_state(file.absolute()).encode(errors="surrogateescape"))
        return digest.hexdigest()

    @property
    def _schema_file(self) -> Path | None:
        return self.cache_dir and self.cache_dir / f"stream-{self.identity}.json"

    def save_schema(self) -> None:
        """Keep the schema beside the decoded stream, so that the next run needs no network."""
        if not self._schema_file.exists():
            with (
                suppress(OSError),
                write_atomically(self._schema_file, concurrent=True) as building,
            ):  # a read-only folder
                building.write_text(json.dumps(asdict(self.schema)), encoding="utf-8")


@dataclass(frozen=True)
class TableStream:
    """The images and labels of a split as they arrive."""

    source: HuggingFace
    split: str

    @property
    def fingerprint(self) -> str:
        """Return a digest of the source's arguments, and the split."""
        return f"{self.source.identity} {self.split}"

    @property
    def total(self) -> int | None:
        """Return the number of images, if it is known."""
        infos = self.source.tables[self.split].info.splits or {}
        n = infos[self.split].num_examples if self.split in infos else None
        return min(n, self.source.max_images or n) if n else self.source.max_images

    @property
    def name(self) -> str:
        """Return what messages call the split."""
        return f"{self.source.path}, {self.split}"

    def __iter__(self) -> Iterator[LabeledImage]:
        rows, row, schema = self._select(), -1, self.source.schema
        try:
            for row, values in enumerate(islice(rows, self.source.max_images)):
                yield self.make_item(row, values[schema.image], values.get(schema.label, 0))
        except DataError:
            raise
        except Exception as error:  # of the network, of parquet, of fsspec
            reason = shorten_error(error)
            raise DataError(f"{self.name}: broke off at row {row + 1} ({reason}). Start the command again.") from None
        self.source.check_not_empty(row + 1, self.split)

    def make_item(self, row: int, image: dict | bytes | None, label: object) -> LabeledImage:
        """Return the encoded image and the class number of a row."""
        name, number = f"row {row} of {self.name}", self.source.numbers.get(label)
        if number is None:
            raise DataError(
                f"{name} has label {label} in column {self.source.schema.label}, which is not a class. "
                "Use another data.split (train), or data.label_column=none to train without classes."
            )
        return hf_tables.make_encoded(image, name), number

    def on_cached(self) -> None:
        """Keep the schema beside the decoded images."""
        self.source.save_schema()

    def _select(self):
        schema = self.source.schema
        return hf_tables.select_undecoded(self.source.tables[self.split], schema.image, schema.label)


class TableEpochStream(TableStream):
    """A stream that is read again in every epoch."""

    def open(self, cache_dir: str | None) -> StreamedTable:
        """Return the table; metadata of its files is kept in `cache_dir`."""
        source, schema = self.source, self.source.schema
        if hf_tables.is_saved(source.path):
            table = ArrowRows(self._select(), self.name, self.make_item)
        else:
            files = hf_tables.parquet_files(source.path, source.name, self.split)
            columns = [schema.image, schema.label] if schema.label else [schema.image]
            groups, digests, digest = read_row_groups(
                files, columns, Path(cache_dir).expanduser() if cache_dir else None
            )
            table = ParquetRows(files, columns, self.name, self.make_item, groups, digests, f"{digest} {columns}")
        n = min(len(table), source.max_images or len(table))
        source.check_not_empty(n, self.split)
        return StreamedTable(table, table.list_ranges(n))
