"""Leave out the images of an exclude list, and number the classes of a source as a run does."""

import json
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from diffusion_lit.data.sources.concat import ConcatImages
from diffusion_lit.data.sources.data_source import DataSource, Split, Subset
from diffusion_lit.system.console import join_names
from diffusion_lit.system.errors import CheckpointError, DataError
from diffusion_lit.system.files import normalize_name

ROW = r"(?:row )?(\d+)(?: of (train|val))?"  # an entry for an image that is no file; "12" is a row of train


class SelectedSource:
    """Another source without the images that a file lists, or with the classes of a run in its order.

    Args:
        source: the source.
        exclude: a file with an image a line: a path, absolute or relative to `data.root`,
            the working directory or the file; or "row 12 of train". Lines that begin with #
            are comments; one that begins with a quote is a JSON string.
        class_names: the classes by number; None: those of the source.

    Raises:
        UserError: exit 3 without the file; exit 4 if the source has classes that the run
            lacks.
    """

    def __init__(self, source: DataSource, exclude: str | None = None, class_names: Sequence[str] | None = None):
        self.source, self.exclude, self.root = source, exclude, getattr(source, "root", None)
        self.class_names = list(source.class_names if class_names is None else class_names)
        self.numbers = match_classes(source.class_names, self.class_names)
        self.entries = read_exclude_list(exclude) if exclude else []

    @property
    def left_out(self) -> dict[str, list[str]]:
        """Return what the source leaves out, by reason."""
        return getattr(self.source, "left_out", {})

    @property
    def notes(self) -> list[str]:
        """Return the notes of the source, how many images are left out, and entries that match none."""
        notes, found = list(getattr(self.source, "notes", ())), set(self.numbers)
        if missing := [name for k, name in enumerate(self.class_names) if k not in found]:
            notes.append(f"no images of {join_names(missing)}: the class keeps its number")
        if self.exclude:
            excluded, unmatched = self._excluded
            notes.append(f"left out by data.exclude={self.exclude}: {sum(map(len, excluded.values())):,}")
            if unmatched:
                notes.append(f"{len(unmatched):,} entries of {self.exclude} match no image: {join_names(unmatched, 3)}")
        return notes

    @property
    def exclude_lines(self) -> list[str]:
        """Return the entries of the exclude list as lines."""
        return list(map(format_line, self.entries))

    @cached_property
    def kept_rows(self) -> dict[str, np.ndarray]:
        """Return the rows of each split of the source that are not left out."""
        splits, (excluded, _) = self.source.splits(), self._excluded
        return {name: np.setdiff1d(np.arange(len(split.labels)), excluded[name]) for name, split in splits.items()}

    def splits(self) -> dict[str, Split]:
        """Return the splits without the excluded images.

        Raises:
            DataError: if no training image is left, or none of a class.
        """
        splits = self.source.splits()
        if any(split.labels is None for split in splits.values()):  # a stream, which brings its labels
            if self.exclude or self.numbers.tolist() != list(range(len(self.class_names))):
                raise DataError("data.exclude and the order of classes need data.streaming=false")
            return splits
        kept = {}
        for name, split in splits.items():
            rows = self.kept_rows[name]
            gone = np.setdiff1d(split.labels, split.labels[rows])
            if name == "train" and len(gone):
                names = join_names(self.source.class_names[k] for k in gone) if self.source.class_names else ""
                raise DataError(
                    f"data.exclude={self.exclude}: no training images {'of ' * bool(names)}{names} are left"
                )
            split = split if len(rows) == len(split.labels) else split.select(rows)
            kept[name] = replace(split, labels=self.numbers[split.labels]) if len(self.numbers) else split
        return {name: split for name, split in kept.items() if len(split.labels)}

    @cached_property
    def _excluded(self) -> tuple[dict[str, list[int]], list[str]]:
        """Return the rows to leave out of each split, and the entries that match no image."""
        excluded, unmatched, places = {"train": [], "val": []}, [], defaultdict(list)
        if not self.entries:
            return excluded, unmatched
        paths = {name: list_paths(split.images) for name, split in self.source.splits().items()}
        for name, files in paths.items():
            for row, path in enumerate(files):
                if path is not None:
                    places[_normalize(path)].append((name, row))
        bases = [base for base in (self.root, ".", Path(self.exclude).expanduser().parent) if base is not None]
        for entry in self.entries:
            found = next((places[path] for base in bases if (path := _normalize(Path(base, entry))) in places), [])
            if not found and (row := re.fullmatch(ROW, entry)):
                name, number = row[2] or "train", int(row[1])
                is_row = name in paths and number < len(paths[name]) and paths[name][number] is None
                found = [(name, number)] if is_row else []
            for name, number in found:
                excluded[name].append(number)
            if not found:
                unmatched.append(entry)
        return {name: sorted(set(rows)) for name, rows in excluded.items()}, unmatched


def match_classes(found: Sequence[str], expected: Sequence[str]) -> np.ndarray:
    """Return the number in `expected` of each class in `found`, int64.

    Raises:
        UserError: exit 4 if a class is not expected, or there are none where some are.
    """
    numbers = {normalize_name(name): k for k, name in enumerate(expected)}
    names = list(map(normalize_name, found))
    new = [name for name in names if name not in numbers]
    gone = [name for name in numbers if name not in names]
    if new or (gone and not names):
        now = f"has the classes {join_names(new)}" if new else "has no classes"
        run = f"without {'these' if new else 'classes'}" if not gone else f"with {join_names(gone)}"
        raise CheckpointError(
            f"the data {now}, the run was trained {run}. Give every class the name that it has in the run: "
            f"{join_names(expected) if expected else 'none (data.labels=none)'}. For other classes start a new run; "
            "init_from= takes the weights of this one."
        )
    return np.array([numbers[name] for name in names], dtype=np.int64)


# ------------------------------------------------------------------------------------------ exclude lists


def read_exclude_list(path: str) -> list[str]:
    """Return the entries of an exclude list. Raise DataError if it cannot be read."""
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig", errors="surrogateescape")
        lines = [line.strip() for line in text.splitlines()]
        return [json.loads(line) if line[0] == '"' else line for line in lines if line and line[0] != "#"]
    except OSError as error:
        raise DataError(f"data.exclude={path[:300]}: {error.strerror}") from None
    except ValueError as error:
        raise DataError(
            f"data.exclude={path[:300]}: a line that begins with a quote is no JSON string ({error})"
        ) from None


def format_entry(source: DataSource, split: Split, name: str, row: int) -> str:
    """Return the line of an exclude list for an image.

    Args:
        source: the data source.
        split: a split of it.
        name: of the split.
        row: of the image in the split.
    """
    path = list_paths(split.images)[row]
    if path is None:
        return f"row {source.kept_rows[name][row] if isinstance(source, SelectedSource) else row} of {name}"
    bases = [getattr(source, "root", None) or Path.cwd(), Path.cwd()]
    below = next((base for base in bases if path.is_relative_to(base)), None)
    return format_line(str(path.relative_to(below) if below else path.absolute()))


def format_line(entry: str) -> str:
    """Return an entry as a line of an exclude list."""
    return entry if entry.isprintable() and entry == entry.strip() and entry[0] not in '#"' else json.dumps(entry)


def list_paths(images) -> list[Path | None]:
    """Return the path of each image of a split, None for one that is no file."""
    if isinstance(images, ConcatImages):
        return [path for part in images.parts for path in list_paths(part)]
    if isinstance(images, Subset):
        paths = list_paths(images.images)
        return [paths[k] for k in images.indices]
    return images if isinstance(images, list) else [None] * len(images)


def _normalize(path: Path) -> str:
    return unicodedata.normalize("NFC", os.path.abspath(path))
