"""Several sources, one after the other, with one list of classes."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from diffusion_lit.data.decoding import Encoded
from diffusion_lit.data.sources.arrays import Arrays
from diffusion_lit.data.sources.folder import ImageFolder, Rows, Split, fingerprint
from diffusion_lit.data.sources.path_table import PathTable
from diffusion_lit.system.errors import Exit, UserError


class Concat:
    """Folders of pictures, arrays and tables of paths, each read as its own source does by default.

    Classes are united by name, in sorted order. Pictures that any of them holds out itself are held out.

    Args:
        sources: folders, `.npy` or `.npz` files, `.csv`, `.tsv` or `.parquet` files.
        labels: "auto", or "none" to train without classes.
    """

    def __init__(self, sources: list[str], labels: str = "auto"):
        self.sources, self.labels = {path: _source(path, labels) for path in sources}, labels

    @cached_property
    def class_names(self) -> list[str]:
        without = [path for path, source in self.sources.items() if not source.class_names]
        if without and len(without) < len(self.sources):
            raise UserError(
                Exit.DATA,
                f"data.sources: {', '.join(without)} has no classes and the others have: "
                "data.labels=none trains without classes",
            )
        return sorted({name for source in self.sources.values() for name in source.class_names})

    def splits(self) -> dict[str, Split]:
        number = {name: k for k, name in enumerate(self.class_names)}
        found = {"train": [], "val": []}
        for source in self.sources.values():
            ours = np.array([number[name] for name in source.class_names] or [0], dtype=np.int64)
            for part, split in source.splits().items():
                found[part].append(Split(split.pictures, ours[split.labels]))
        return {part: _joined(splits) for part, splits in found.items() if splits}


def _source(path: str, labels: str) -> ImageFolder | Arrays | PathTable:
    here, suffix = Path(path).expanduser(), Path(path).suffix.lower()
    if here.is_dir():
        return ImageFolder(path, labels)
    if suffix in (".npy", ".npz"):
        return Arrays(path, labels=labels)
    if suffix in (".csv", ".tsv", ".parquet"):
        return PathTable(path, label_column=labels)
    raise UserError(Exit.DATA, f"data.sources: {path} is no folder, array (.npy .npz) or table (.csv .tsv .parquet)")


@dataclass(frozen=True)
class Joined:
    """Pictures of several kinds as one sequence."""

    parts: list[Sequence[Path] | np.ndarray | Rows]
    rows: np.ndarray  # (N, 2): which part, and which of its pictures

    @property
    def fingerprint(self) -> str:
        words = " ".join(map(fingerprint, self.parts)).encode()
        return hashlib.blake2b(words + self.rows.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, k: int | np.ndarray) -> "Path | Encoded | np.ndarray | Joined":
        if isinstance(k, np.ndarray):
            return Joined(self.parts, self.rows[k])
        part, row = self.rows[k]
        return self.parts[part][row]


def _joined(splits: list[Split]) -> Split:
    rows = [np.column_stack([np.full(len(s.labels), k), np.arange(len(s.labels))]) for k, s in enumerate(splits)]
    pictures = Joined([split.pictures for split in splits], np.concatenate(rows))
    return Split(pictures, np.concatenate([split.labels for split in splits]))
