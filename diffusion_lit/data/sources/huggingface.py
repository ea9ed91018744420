"""Hugging Face data sets: of the hub, a folder of pictures, parquet files, or what `save_to_disk` left.

`datasets` finds and reads the tables. Pictures stay encoded in them and are decoded as all others are, by
`diffusion_lit.data.decoding`; which column holds them is seen by type, not by name.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path

import numpy as np

from diffusion_lit.data.decoding import Encoded
from diffusion_lit.data.sources.folder import Split
from diffusion_lit.data.sources.parts import ArrowRows, ParquetRows, parquet_groups
from diffusion_lit.data.sources.tables import (
    class_values,
    image_column,
    is_saved,
    label_column,
    listed,
    load_tables,
    parquet_files,
    short,
    undecoded,
)
from diffusion_lit.data.streaming import EVERY_EPOCH, Anew, Reread
from diffusion_lit.system.errors import Exit, UserError
from diffusion_lit.system.files import write_atomically

HELD_OUT = ("validation", "val", "valid", "test")  # the first that is there
# what a table may have fetched, in archives too; some of fsspec's other protocols do what a file says
REMOTE = r"(hf|https?|s3|gs|zip|tar|gzip)://|/"


@dataclass(frozen=True)
class Facts:
    """What is known of a set before its pictures are read."""

    train: str  # names of splits in the set
    held_out: list[str]
    image: str  # names of columns
    label: str | None
    values: list  # label values, by class
    class_names: list[str]


class HuggingFace:
    """A Hugging Face data set, as a table on disk or as a stream.

    Args:
        path: an id of the hub, a folder (pictures, parquet files or `save_to_disk`), or a parquet file.
        name: of its configuration, where it has several.
        split: None takes train, and validation, val, valid or test as held out; or what `load_dataset` takes.
        image_column, label_column: "auto" (see `diffusion_lit.data.sources.tables`), a name, or for labels "none".
        streaming: True: read it once from where it is and keep only what is decoded; "every_epoch": keep nothing, and
            read it again in every epoch (parquet files and `save_to_disk`).
        max_images: only the first so many of each split.
        cache_dir: kept there is also what `datasets` makes of a set that is not streamed.
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
    ):
        self.path, self.name, self.split = path, name, split
        self.image_column, self.label_column = image_column, label_column
        self.streaming, self.max_images = streaming, max_images
        self.cache_dir = Path(cache_dir).expanduser() if cache_dir else None

    @property
    def class_names(self) -> list[str]:
        return self.facts.class_names

    def splits(self) -> dict[str, Split]:
        facts = self.facts
        if self.streaming:
            named = {"train": facts.train} | ({"val": facts.held_out[0]} if facts.held_out else {})
            kind = TableAgain if self.streaming == EVERY_EPOCH else TableStream
            return {part: Split(kind(self, split), None) for part, split in named.items()}
        train = self._split(facts.train)
        missing = int((train.labels < 0).sum())
        if missing:
            raise UserError(
                Exit.DATA,
                f"data.path={self.path}: {missing:,} of {len(train.labels):,} labels in column {facts.label} are "
                "missing (-1 or none); name another data.label_column, or none to train without classes",
            )
        for name in facts.held_out:
            split = self._split(name)
            if (split.labels >= 0).all():  # test sets of competitions come without labels
                return {"train": train, "val": split}
        return {"train": train}

    @cached_property
    def facts(self) -> Facts:
        if self.streaming and self._facts_file:
            with suppress(OSError, ValueError, TypeError):  # not there, or damaged
                return Facts(**json.loads(self._facts_file.read_text()))
        train = self._train()
        table = self.tables[train]
        features = table.features
        if features is None:
            raise UserError(Exit.DATA, f"data.path={self.path} does not say its columns: set data.streaming=false")
        image = image_column(self.image_column, table, self.path)
        label = label_column(self.label_column, features, self.path)
        values, names = class_values(table, label, self.path)
        return Facts(train, [k for k in HELD_OUT if k in self.tables and k != train], image, label, values, names)

    @cached_property
    def classes(self) -> dict:
        """Label value to number."""
        return {value: k for k, value in enumerate(self.facts.values)}

    @cached_property
    def tables(self) -> dict:
        """Split name to `datasets.Dataset`, or to `IterableDataset` with streaming."""
        streaming = bool(self.streaming) and not (self.streaming == EVERY_EPOCH and is_saved(self.path))
        return load_tables(self.path, self.name, self.split, streaming, self.cache_dir)

    def _train(self) -> str:
        names = list(self.tables)
        if len(names) > 1 and "train" not in names:
            raise UserError(Exit.DATA, f"data.path={self.path} has no train split: set data.split to {listed(names)}")
        return "train" if "train" in names else names[0]

    def _split(self, name: str) -> Split:
        table, facts = self.tables[name], self.facts
        n = min(len(table), self.max_images or len(table))
        if n == 0:
            raise UserError(Exit.DATA, f"data.path={self.path}: its split {name} is empty")
        pictures = TableRows(undecoded(table, facts.image), f"{self.path}, {name}", np.arange(n))
        if facts.label is None:
            return Split(pictures, np.zeros(n, dtype=np.int64))
        values = table.select_columns([facts.label]).with_format("arrow")[:n].column(0).to_pylist()
        known = {value: k for k, value in enumerate(facts.values)} | {None: -1, -1: -1}
        unknown = sorted({str(value) for value in values if value not in known})
        if unknown:
            raise UserError(
                Exit.DATA,
                f"data.path={self.path}: split {name} has labels that are no class of train: {listed(unknown)}",
            )
        return Split(pictures, np.array([known[value] for value in values], dtype=np.int64))

    @cached_property
    def identity(self) -> str:
        """Of a stream, without reaching for it: where it comes from and what is taken; of local files also times."""
        here = Path(self.path).expanduser()
        asked = [self.path, self.name, self.split, self.image_column, self.label_column, self.max_images]
        digest = hashlib.blake2b(repr(asked).encode(), digest_size=8)
        for file in sorted(here.rglob("*")) if here.is_dir() else [here] if here.exists() else []:
            stat = os.lstat(file)
            digest.update(f"{file.absolute()}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    @property
    def _facts_file(self) -> Path | None:
        return self.cache_dir and self.cache_dir / f"stream-{self.identity}.json"

    def remember(self) -> None:
        """Keep the facts beside the decoded stream, so that the next run reaches for nothing."""
        if not self._facts_file.exists():
            with (
                suppress(OSError),
                write_atomically(self._facts_file, many=True) as beside,
            ):  # a folder that cannot be written
                beside.write_text(json.dumps(asdict(self.facts)))


@dataclass(frozen=True)
class TableRows:
    """Pictures of a `datasets.Dataset`, read from disk one by one; in messages "row 17 of <where>"."""

    table: object  # its one column holds undecoded pictures
    where: str
    rows: np.ndarray

    @property
    def fingerprint(self) -> str:
        return f"{self.table._fingerprint} {hashlib.blake2b(self.rows, digest_size=8).hexdigest()}"

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, k: int | np.ndarray) -> "Path | Encoded | TableRows":
        if isinstance(k, np.ndarray):
            return TableRows(self.table, self.where, self.rows[k])
        row = int(self.rows[k])
        (value,) = self.table[row].values()
        return picture(value, f"row {row} of {self.where}")


@dataclass(frozen=True)
class TableStream:
    """Pictures and labels of a split as they arrive."""

    source: HuggingFace
    split: str

    @property
    def fingerprint(self) -> str:
        return f"{self.source.identity} {self.split}"

    @property
    def total(self) -> int | None:
        infos = self.source.tables[self.split].info.splits or {}
        n = infos[self.split].num_examples if self.split in infos else None
        return min(n, self.source.max_images or n) if n else self.source.max_images

    def __iter__(self) -> Iterator[tuple[Path | Encoded, int]]:
        facts = self.source.facts
        rows, row = undecoded(self.source.tables[self.split], facts.image, facts.label), -1
        try:
            for row, values in enumerate(islice(rows, self.source.max_images)):
                yield self.row(row, values[facts.image], values[facts.label] if facts.label else 0)
        except UserError:
            raise
        except Exception as error:  # of the network, of parquet, of fsspec
            told = f"{self.where}: broke off at row {row + 1} ({short(error)}); start again"
            raise UserError(Exit.DATA, told) from None
        if row < 0:
            raise UserError(Exit.DATA, f"data.path={self.source.path}: its split {self.split} is empty")

    @property
    def where(self) -> str:
        return f"{self.source.path}, {self.split}"

    def row(self, row: int, value: dict | bytes | None, label: object) -> tuple[Path | Encoded, int]:
        """What training takes of a row."""
        number = self.source.classes.get(label) if self.source.facts.label else 0
        if number is None:
            raise UserError(
                Exit.DATA,
                f"row {row} of {self.where} has label {label} in column {self.source.facts.label}, which is no class; "
                "take another data.split (train), or data.label_column=none to train without classes",
            )
        return picture(value, f"row {row} of {self.where}"), number

    def remember(self) -> None:
        self.source.remember()


class TableAgain(TableStream, Reread):
    """Those that are read in every epoch anew."""

    def anew(self, cache_dir: str | None) -> Anew:
        source, facts = self.source, self.source.facts
        if is_saved(source.path):
            table = ArrowRows(undecoded(source.tables[self.split], facts.image, facts.label), self.where, self.row)
        else:
            files = parquet_files(source.path, source.name, self.split)
            groups, ends = parquet_groups(files, Path(cache_dir).expanduser() if cache_dir else None)
            columns = [facts.image, facts.label] if facts.label else [facts.image]
            table = ParquetRows(files, columns, self.where, self.row, groups, f"{ends} {columns}")
        n = min(len(table), source.max_images or len(table))
        if n == 0:
            raise UserError(Exit.DATA, f"data.path={source.path}: its split {self.split} is empty")
        return Anew(table, table.parts(n))


def picture(value: dict | bytes | None, name: str) -> Path | Encoded:
    """An undecoded value of an image column: bytes, or a path to them, local or with a protocol (hf://...)."""
    data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    if data is not None:
        return Encoded(name, data)
    if not path:
        raise UserError(Exit.DATA, f"{name}: there is no picture")
    if "://" not in path:
        return Path(path)
    if not all(re.match(REMOTE, link) for link in path.split("::")):
        raise UserError(Exit.DATA, f"{name}: a picture is not fetched from {path[:200]}")
    return Encoded(name, partial(_fetched, path))


def _fetched(url: str) -> bytes:
    import fsspec

    with fsspec.open(url) as file:
        return file.read()
