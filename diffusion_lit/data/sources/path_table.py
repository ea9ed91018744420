"""A table of image files, csv or parquet: one row per image, with its path, class and split."""

import csv
from functools import cached_property
from pathlib import Path

import numpy as np

from diffusion_lit.data.sources.data_source import SPLIT_NAMES, Split, report_damaged_file
from diffusion_lit.data.sources.hf_tables import LABEL_COLUMNS
from diffusion_lit.system.console import join_names
from diffusion_lit.system.errors import DataError

# usual names of columns; the first that exists is used
PATH_COLUMNS = ("path", "file", "file_name", "filename", "image_path", "image")
SPLIT_COLUMNS = ("split", "subset", "partition")


class PathTable:
    """Images listed in a table.

    Args:
        path: `.csv` or `.tsv` (UTF-8, the first line names the columns), or `.parquet`.
        root: the folder that the paths are relative to; None: the folder of the table.
        path_column: "auto" (a usual name) or a name.
        label_column: "auto", a name, or "none".
        split_column: "auto", a name, or "none".
    """

    def __init__(
        self,
        path: str,
        root: str | None = None,
        path_column: str = "auto",
        label_column: str = "auto",
        split_column: str = "auto",
    ):
        self.path = Path(path).expanduser()
        self.root = Path(root).expanduser() if root else self.path.parent
        if not self.path.is_file():
            raise DataError(f"data.path={path}: file not found")
        self.paths = self._column("path", path_column, PATH_COLUMNS)
        self.labels = self._column("label", label_column, LABEL_COLUMNS)
        self.split_names = self._column("split", split_column, SPLIT_COLUMNS)

    @cached_property
    def columns(self) -> dict[str, list]:
        """Return the values of each column; those of a csv are strings."""
        with report_damaged_file(self.path):
            if self.path.suffix.lower() == ".parquet":
                import pyarrow.parquet

                return pyarrow.parquet.read_table(self.path).to_pydict()
            with open(self.path, newline="", encoding="utf-8-sig") as file:
                rows = csv.reader(file, delimiter="\t" if self.path.suffix.lower() == ".tsv" else ",")
                names, *rows = [row for row in rows if row]
            for k, row in enumerate(rows):
                if len(row) != len(names):
                    raise ValueError(f"row {k + 1} has {len(row)} values for {len(names)} columns")
            return {name: [row[k] for row in rows] for k, name in enumerate(names)}

    def _column(self, kind: str, requested: str, usual: tuple[str, ...]) -> list | None:
        name = requested
        if requested == "auto":
            name = next((key for key in usual if key in self.columns), "none")
        if name in self.columns:
            return self.columns[name]
        if requested in ("auto", "none") and kind != "path":
            return None
        missing = "no column of paths" if requested == "auto" else f"no column {requested}"
        raise DataError(f"{self.path}: {missing}. Set data.{kind}_column to one of {join_names(self.columns)}.")

    @cached_property
    def class_names(self) -> list[str]:
        """Return the labels, sorted as numbers if all are; empty without labels."""
        if self.labels is None:
            return []
        empty = [k + 1 for k, value in enumerate(self.labels) if value is None or value == ""]
        if empty:
            raise DataError(f"{self.path}: {len(empty):,} rows have no label, the first is row {empty[0]}")
        names = {str(value) for value in self.labels}
        return sorted(names, key=int) if all(name.isdecimal() for name in names) else sorted(names)

    def splits(self) -> dict[str, Split]:
        """Return "train", and "val" if the table has val or test rows."""
        paths = self._resolve_paths()
        numbers = {name: k for k, name in enumerate(self.class_names)}
        labels = [numbers[str(value)] for value in self.labels] if numbers else [0] * len(paths)
        everything = Split(paths, np.array(labels, dtype=np.int64))
        return {name: everything.select(rows) for name, rows in self._rows_of_splits(len(paths)).items() if len(rows)}

    def _resolve_paths(self) -> list[Path]:
        empty = next((k + 1 for k, value in enumerate(self.paths) if not value), None)
        if empty or not self.paths:
            raise DataError(f"{self.path}: {f'row {empty} has no path' if empty else 'has no rows'}")
        paths = [self.root / str(value) for value in self.paths]
        missing = [path for path in paths if not path.exists()]
        if missing:
            raise DataError(
                f"{self.path}: {len(missing):,} of {len(paths):,} images not found, such as {missing[0]}. "
                "Set data.root=... to the folder that the paths are relative to."
            )
        return paths

    def _rows_of_splits(self, n: int) -> dict[str, np.ndarray]:
        if self.split_names is None:
            return {"train": np.arange(n)}
        names = [str(name).lower() for name in self.split_names]
        unknown = sorted(set(names) - SPLIT_NAMES.keys())
        if unknown or "train" not in names:
            fault = f"unknown splits {join_names(unknown)}" if unknown else "no split train"
            raise DataError(
                f"{self.path}: {fault}. Use {join_names(SPLIT_NAMES)}, or set data.split_column=none to ignore them."
            )
        names = np.array([SPLIT_NAMES[name] for name in names])
        val = "val" if "val" in names else "test"
        return {"train": np.flatnonzero(names == "train"), "val": np.flatnonzero(names == val)}
