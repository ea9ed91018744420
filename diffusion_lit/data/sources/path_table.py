"""A table of pictures, csv or parquet: one row a picture, with its path, its class, its split."""

import csv
from functools import cached_property
from pathlib import Path

import numpy as np

from diffusion_lit.data.sources.folder import SPLIT_NAMES, Split, whole
from diffusion_lit.data.sources.tables import LABELS, listed
from diffusion_lit.system.errors import Exit, UserError

PATHS = ("path", "file", "file_name", "filename", "image_path", "image")  # usual names, the first counts
SPLITS = ("split", "subset", "partition")


class PathTable:
    """Pictures listed in a table.

    Args:
        path: `.csv` or `.tsv` (UTF-8, the first line names the columns), or `.parquet`.
        root: the folder that paths start from; None: that of the table.
        path_column, label_column, split_column: "auto" (a usual name), a name, or for labels and splits "none".
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
            raise UserError(Exit.DATA, f"data.path={path}: no such file")
        self.pictures = self._column("path", path_column, PATHS)
        self.labels = self._column("label", label_column, LABELS)
        self.parts = self._column("split", split_column, SPLITS)

    @cached_property
    def columns(self) -> dict[str, list]:
        """Name to values; those of a csv are text."""
        with whole(self.path):
            if self.path.suffix.lower() == ".parquet":
                import pyarrow.parquet

                return pyarrow.parquet.read_table(self.path).to_pydict()
            with open(self.path, newline="", encoding="utf-8-sig") as file:
                rows = csv.reader(file, delimiter="\t" if self.path.suffix.lower() == ".tsv" else ",")
                names, *rows = [row for row in rows if row]
            uneven = next((k for k, row in enumerate(rows) if len(row) != len(names)), None)
            if uneven is not None:
                raise ValueError(f"row {uneven + 1} has {len(rows[uneven])} values for {len(names)} columns")
            return {name: [row[k] for row in rows] for k, name in enumerate(names)}

    def _column(self, what: str, asked: str, usual: tuple[str, ...]) -> list | None:
        name = next((k for k in usual if k in self.columns), "none") if asked == "auto" else asked
        if name in self.columns:
            return self.columns[name]
        if asked in ("auto", "none") and what != "path":
            return None
        missing = "no column of paths" if asked == "auto" else f"no column {asked}"
        raise UserError(
            Exit.DATA, f"{self.path} has {missing}, but {listed(self.columns)}: name one with data.{what}_column=..."
        )

    @cached_property
    def class_names(self) -> list[str]:
        """In the order of numbers, if all are whole numbers; else of text."""
        if self.labels is None:
            return []
        empty = [k + 1 for k, value in enumerate(self.labels) if value is None or value == ""]
        if empty:
            raise UserError(Exit.DATA, f"{self.path}: {len(empty):,} rows have no label, the first is row {empty[0]}")
        names = {str(value) for value in self.labels}
        return sorted(names, key=int) if all(name.isdecimal() for name in names) else sorted(names)

    def splits(self) -> dict[str, Split]:
        missing = [path for path in self._paths if not path.exists()]
        if missing:
            raise UserError(
                Exit.DATA,
                f"{self.path}: {len(missing):,} of {len(self._paths):,} pictures are not there, {missing[0]} for one; "
                "data.root=... is the folder that paths start from",
            )
        number = {name: k for k, name in enumerate(self.class_names)}
        labels = [number[str(value)] for value in self.labels] if number else [0] * len(self._paths)
        labels = np.array(labels, dtype=np.int64)
        return {
            part: Split([self._paths[k] for k in rows], labels[rows]) for part, rows in self._rows_of_splits.items()
        }

    @cached_property
    def _paths(self) -> list[Path]:
        empty = next((k + 1 for k, value in enumerate(self.pictures) if not value), None)
        if empty or not self.pictures:
            raise UserError(Exit.DATA, f"{self.path}: {f'row {empty} has no path' if empty else 'has no rows'}")
        return [self.root / str(value) for value in self.pictures]

    @property
    def _rows_of_splits(self) -> dict[str, np.ndarray]:
        if self.parts is None:
            return {"train": np.arange(len(self._paths))}
        words = [str(word).lower() for word in self.parts]
        unknown = sorted(set(words) - SPLIT_NAMES.keys())
        if unknown or "train" not in words:
            what = f"splits {listed(unknown)}" if unknown else "no split train"
            raise UserError(
                Exit.DATA, f"{self.path} has {what}: known are {listed(SPLIT_NAMES)}; data.split_column=none ignores it"
            )
        names = np.array([SPLIT_NAMES[word] for word in words])
        held_out = "val" if "val" in names else "test"
        rows = {"train": np.flatnonzero(names == "train"), "val": np.flatnonzero(names == held_out)}
        return {part: found for part, found in rows.items() if len(found)}
