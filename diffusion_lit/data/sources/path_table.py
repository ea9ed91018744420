"""A table of image files, csv or parquet: one row per image, with its path, class and split."""

import os
import unicodedata
from collections import defaultdict
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from diffusion_lit.data.captions import COLUMNS as CAPTION_COLUMNS
from diffusion_lit.data.captions import Captions, split_captions
from diffusion_lit.data.sources.data_source import SPLIT_NAMES, Split
from diffusion_lit.data.sources.listing import list_files
from diffusion_lit.data.sources.table_file import Table, read_table, simplify_name
from diffusion_lit.data.sources.table_labels import (
    LABEL_COLUMNS,
    describe_unused_columns,
    find_missing_labels,
    name_classes,
    sort_classes,
)
from diffusion_lit.data.sources.tiles import cut_sheets, list_left_out, make_tiling
from diffusion_lit.imaging.sizes import ImageSize
from diffusion_lit.system.console import join_names
from diffusion_lit.system.errors import DataError
from diffusion_lit.system.platform import to_file_text

# usual names of columns; the first that exists is used
COLUMNS = {
    "path": ("path", "file", "file_name", "filename", "image_path", "image"),
    "label": LABEL_COLUMNS,
    "split": ("split", "subset", "partition"),
    "caption": CAPTION_COLUMNS,
}
MAX_NAMES = 3  # images that a note names


class PathTable:
    """Images listed in a table.

    Args:
        path: `.csv` or `.tsv` with names in the first line, or `.parquet`. Delimiter and
            encoding are found by content.
        root: the folder that the paths are relative to; None: the folder of the table.
        path_column: "auto" (a usual name) or a name.
        label_column: "auto", a name, or "none".
        split_column: "auto", a name, or "none".
        caption_column: "auto", a name, or "none".
        tile: see `ImageFolder`.
        tile_margin: see `ImageFolder`.
        tile_spacing: see `ImageFolder`.
    """

    def __init__(
        self,
        path: str,
        root: str | None = None,
        path_column: str = "auto",
        label_column: str = "auto",
        split_column: str = "auto",
        caption_column: str = "none",
        tile: ImageSize | None = None,
        tile_margin: int = 0,
        tile_spacing: int = 0,
    ):
        self.tiling = make_tiling(tile, tile_margin, tile_spacing)
        self.path = Path(path).expanduser()
        self.root = Path(root).expanduser() if root else self.path.parent
        if not os.path.isfile(self.path):
            raise DataError(f"data.path={path[:300]}: file not found")
        self._stems = cache(list_stems)
        self.requested = {"path": path_column, "label": label_column, "split": split_column, "caption": caption_column}
        self.columns = {kind: self._find_column(kind) for kind in COLUMNS}
        if not self.table.columns[0]:
            raise DataError(f"{self.path}: has no rows")

    @cached_property
    def table(self) -> Table:
        """Return the table."""
        return read_table(self.path, {*COLUMNS["path"], simplify_name(self.requested["path"])})

    def _find_column(self, kind: str) -> int | None:
        """Return the number of the column of paths, labels or splits; None without it."""
        requested = self.requested[kind]
        for name in COLUMNS[kind] if requested == "auto" else (requested,):
            if (column := self.table.find_column(name)) is not None:
                return column
        if requested in ("auto", "none") and kind != "path":
            return None
        if requested == "auto" and any(self._find_file(name) for name in self.table.names):
            raise DataError(f"{self.path}: the first line is an image. Add a line of names above it: path,label")
        missing = "no column of paths" if requested == "auto" else f"no column {requested}"
        names = join_names(name[:80] for name in self.table.names)
        raise DataError(f"{self.path}: {missing}. Set data.{kind}_column to one of {names}.")

    def _read_column(self, kind: str) -> list | None:
        column = self.columns[kind]
        if column is None:
            return None
        values = self.table.columns[column]
        broken = [k for k, value in enumerate(values) if isinstance(value, str) and "\n" in value.strip()]
        if broken:
            where, name = self.table.describe_rows(broken), self.table.names[column]
            raise DataError(f"{self.path}, {where}: {name} goes on in the next line. Is a quote not closed there?")
        return values

    # -------------------------------------------------------------------------------- labels

    @cached_property
    def labels(self) -> list[str] | None:
        """Return the class name of each row, or None."""
        values = self._read_column("label")
        if values is None:
            return None
        if missing := find_missing_labels(values):
            raise DataError(
                f"{self.path}, {self.table.describe_rows(missing)}: no label ({len(missing):,} of {len(values):,}). "
                "Fill them in, or set data.label_column=none to train without classes."
            )
        return name_classes(values, f"{self.path}: column {self.table.names[self.columns['label']]}")

    @cached_property
    def class_names(self) -> list[str]:
        """Return the labels, sorted as numbers if all are; empty without labels."""
        return sort_classes(set(self.labels or ()))

    # -------------------------------------------------------------------------------- images

    @cached_property
    def paths(self) -> list[Path]:
        """Return the file of each row."""
        values = self._read_column("path")
        empty = [k for k, value in enumerate(values) if value is None or value != value or not str(value).strip()]
        if empty:
            raise DataError(f"{self.path}, {self.table.describe_rows(empty)}: no path")
        name = self.table.names[self.columns["path"]]
        if any(not isinstance(value, str | int) for value in values):
            raise DataError(
                f"{self.path}: column {name} holds no paths. For images inside of a parquet file use "
                f"data=huggingface data.path={self.path}."
            )
        paths = [self._find_file(value) for value in values]
        if missing := [k for k, path in enumerate(paths) if path is None]:
            if "://" in (url := str(values[missing[0]])):
                raise DataError(
                    f"{self.path}, {self.table.describe_rows(missing)}: images are not fetched from URLs, such as "
                    f"{url[:300]}. Download them, and list the files."
                )
            first = str(self.root / str(values[missing[0]]).strip())
            first = first if len(first) < 300 else f"{first[:300]}..."
            raise DataError(
                f"{self.path}, {self.table.describe_rows(missing)}: {len(missing):,} of {len(paths):,} images not "
                f"found, such as {first}. Set data.root=... to the folder that the paths are relative to."
            )
        return paths

    def _find_file(self, value: str | int) -> Path | None:
        """Return the file of a path, also if it has backslashes, spaces around it, or no suffix."""
        usual = str(value).strip()
        names = [usual, *(unicodedata.normalize(form, usual) for form in ("NFC", "NFD"))]
        usual, *others = map(to_file_text, names)
        for name in (usual, *others):
            for spelling in (name, name.replace("\\", "/")):
                if os.path.isfile(self.root / spelling):
                    return self.root / spelling
        path = self.root / usual.replace("\\", "/")
        same_stem = self._stems(path.parent).get(path.name, [])
        return path.with_name(same_stem[0]) if len(same_stem) == 1 else None

    def _read_captions(self) -> Captions | None:
        column = self.columns["caption"]
        return None if column is None else [split_captions([text]) for text in self.table.columns[column]]

    # -------------------------------------------------------------------------------- splits

    def splits(self) -> dict[str, Split]:
        """Return "train", and "val" if the table has val or test rows."""
        numbers = {name: k for k, name in enumerate(self.class_names)}
        labels = [numbers[name] for name in self.labels] if self.labels else [0] * len(self.paths)
        everything = Split(self.paths, np.array(labels, dtype=np.int64), captions=self._read_captions())
        rows = {"train": self.split_names == "train", "val": self.split_names == self._val}
        parts = {name: everything.select(np.flatnonzero(own)) for name, own in rows.items() if own.any()}
        return {name: cut_sheets(part, self.tiling) for name, part in parts.items()}

    @cached_property
    def left_out(self) -> dict[str, list[str]]:
        """Return the tiles that are not used, by the reason."""
        return list_left_out(self.splits().values()) if self.tiling else {}

    @cached_property
    def split_names(self) -> np.ndarray:
        """Return "train", "val" or "test" for each row."""
        values = self._read_column("split")
        if values is None:
            return np.full(len(self.table.columns[0]), "train")
        names = ["" if value is None or value != value else str(value).strip().lower() for value in values]
        fault = None if "train" in names else "no split train"
        if unknown := [k for k, name in enumerate(names) if name not in SPLIT_NAMES]:
            values = sorted({names[k] or "(empty)" for k in unknown})
            fault = f"{self.table.describe_rows(unknown)}: unknown splits {join_names(values)}"
        if fault:
            raise DataError(
                f"{self.path}, {fault}. Use {join_names(SPLIT_NAMES)}, or set data.split_column=none to ignore them."
            )
        return np.array([SPLIT_NAMES[name] for name in names])

    @property
    def _val(self) -> str:
        return "val" if "val" in self.split_names else "test"

    # -------------------------------------------------------------------------------- notes

    @property
    def notes(self) -> list[str]:
        """Return what the table leaves open: columns, rows and images that are not used, and contradictions."""
        table, notes = self.table, []
        if table.encoding:
            notes.append(f"{self.path} is not UTF-8: read as {table.encoding}")
        if self.requested["label"] == "auto":
            used = {column for column in self.columns.values() if column is not None}
            others = {table.names[k]: values for k, values in enumerate(table.columns) if k not in used}
            notes += describe_unused_columns(others, self.labels is None)
        if self.requested["split"] == "auto" and self.columns["split"] is None:
            notes += self._describe_unused_splits()
        trained = {self.labels[row] for row in np.flatnonzero(self.split_names == "train")} if self.labels else ()
        if untrained := [name for name in self.class_names if name not in trained]:
            notes.append(f"no training images of {join_names(untrained)}: all rows of the class are for validation")
        unused = int((self.split_names == "test").sum()) if self._val == "val" else 0
        if unused:
            notes.append(f"{unused:,} test rows of {self.path} are not used: validation has the val rows")
        return [*notes, *self._describe_repeats(), *self._describe_unlisted()]

    def _describe_unused_splits(self) -> list[str]:
        """Return a note on a column whose values are names of splits."""
        for name, values in zip(self.table.names, self.table.columns, strict=True):
            found = {str(value).strip().lower() for value in values}
            if "train" in found and len(found) > 1 and found <= set(SPLIT_NAMES):
                return [f"no splits are used. data.split_column={name} takes those of that column"]
        return []

    def _describe_repeats(self) -> list[str]:
        """Return a note each for images with several labels, in training and validation, and listed twice."""
        rows_of = defaultdict(list)
        for row, path in enumerate(self.paths):
            rows_of[os.path.normpath(path)].append(row)
        groups = {"with several labels": [], "listed for training and for validation": [], "listed more than once": []}
        with_labels, in_both, twice = groups.values()
        for rows in rows_of.values():
            if len(rows) > 1:
                has_labels = self.labels and len({self.labels[row] for row in rows}) > 1
                is_in_both = {"train", self._val} <= set(self.split_names[rows])
                (with_labels if has_labels else in_both if is_in_both else twice).append(rows)
        return [f"{len(found):,} images {fault}: {self._name_rows(found)}" for fault, found in groups.items() if found]

    def _name_rows(self, groups: list[list[int]]) -> str:
        names = [f"{self._short_name(self.paths[rows[0]])} ({self.table.describe_rows(rows)})" for rows in groups]
        return join_names(names, MAX_NAMES)

    def _describe_unlisted(self) -> list[str]:
        """Return a note on images that lie beside those of the table without being listed."""
        listed, unlisted = {os.path.normpath(path) for path in self.paths}, []
        for folder in sorted({path.parent for path in self.paths}):
            paths = [folder / name for names in self._stems(folder).values() for name in names]
            unlisted += [self._short_name(path) for path in paths if os.path.normpath(path) not in listed]
        note = f"{len(unlisted):,} images beside them are not in {self.path}: {join_names(unlisted, MAX_NAMES)}"
        return [note] if unlisted else []

    def _short_name(self, path: Path) -> str:
        return str(path.relative_to(self.root) if path.is_relative_to(self.root) else path)


def list_stems(folder: Path) -> dict[str, list[str]]:
    """Return the names of the images in a folder by their names without suffix."""
    stems = defaultdict(list)
    for path in list_files(folder, recursive=False).images if os.path.isdir(folder) else ():
        stems[path.stem].append(path.name)
    return stems
