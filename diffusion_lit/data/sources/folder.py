"""Where pictures come from. A source lists pictures; decoding and batching are not its business.

A source is a class with `splits()`, a dict of `Split` that has "train" and may have "val" (pictures held out by the
source itself), and `class_names` (empty: unlabelled). Its constructor arguments are keys of its yaml in `conf/data`.
Nothing here imports torch, so that a missing folder is reported within a second.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np

from diffusion_lit.data.decoding import Encoded
from diffusion_lit.system.errors import Exit, UserError

SUFFIXES = {".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff"}
JUNK = {"__MACOSX", "@eaDir"}  # and everything that starts with a dot
SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


class Rows(Protocol):
    """Pictures of a table or an array, read when asked for: `rows[3]` is one, `rows[array]` fewer rows."""

    fingerprint: str  # another one when the pictures are others, the same in the next process

    def __len__(self) -> int: ...

    def __getitem__(self, k: int | np.ndarray) -> "Path | Encoded | np.ndarray | Rows": ...


class Stream(Protocol):
    """Pictures with their labels that come one after the other, once, from afar."""

    fingerprint: str
    total: int | None  # how many, if that is known

    def __iter__(self) -> Iterator[tuple[Path | Encoded, int]]: ...

    def remember(self) -> None:
        """Told when all of it is decoded and kept in `data.cache_dir`."""


@dataclass(frozen=True)
class Split:
    """Pictures of one split, in a fixed order: paths, rows, or uint8 arrays (H, W) or (H, W, C).

    `labels` are int64 (N,), or None for a stream, which brings them along. Pictures of one of the `groups` (N,) are
    held out together: what repeats is never both trained on and held out.
    """

    pictures: Sequence[Path] | np.ndarray | Rows | Stream
    labels: np.ndarray | None
    groups: np.ndarray | None = None

    def take(self, part: np.ndarray) -> "Split":
        listed = isinstance(self.pictures, list)
        return Split([self.pictures[k] for k in part] if listed else self.pictures[part], self.labels[part])


def hold_out(splits: dict[str, Split], fraction: float) -> dict[str, Split]:
    """Splits with a "val": the source's own, else `fraction` of its pictures, the same ones in every run (0: none).

    A stream is left alone: its end is held out once it is read (`diffusion_lit.data.store.cut`).
    """
    train = splits["train"]
    if "val" in splits or train.labels is None:
        return splits
    group_of = train.groups
    if group_of is None:
        n = len(train.labels)
    else:
        names, group_of = np.unique(group_of, return_inverse=True)
        n = len(names)
    held_out = min(round(n * fraction), n - 1)
    if not held_out:
        return splits
    order = np.random.Generator(np.random.PCG64(n)).permutation(n)
    parts = {"val": np.sort(order[:held_out]), "train": np.sort(order[held_out:])}
    if group_of is not None:
        parts = {name: np.flatnonzero(np.isin(group_of, part)) for name, part in parts.items()}
    return {name: train.take(part) for name, part in parts.items()}


class Digits:
    """The 1,797 handwritten digits bundled with scikit-learn, 8x8 grey; the last 20 % are held out."""

    class_names = [str(digit) for digit in range(10)]

    def splits(self) -> dict[str, Split]:
        # importing scikit-learn takes a second, and of all of it this file alone is wanted
        home = Path(find_spec("sklearn").origin).parent
        rows = np.loadtxt(home / "datasets" / "data" / "digits.csv.gz", delimiter=",")
        images = np.round(rows[:, :64].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)  # 17 grey levels, 0 is paper
        labels = rows[:, 64].astype(np.int64)
        held_out = len(labels) // 5
        return {
            "train": Split(images[:-held_out], labels[:-held_out]),
            "val": Split(images[-held_out:], labels[-held_out:]),
        }


class ImageFolder:
    """A folder of pictures. One rule decides what it means:

    a root that holds only folders named train, val or test is a set of splits (with others beside train and another of
    them it is refused); in each of them (or in the root) two or more folders with pictures are classes, named by
    folder, in sorted order; otherwise the pictures are unlabelled. Pictures are found at any depth. Dot files,
    `__MACOSX` and the like are never pictures or classes.

    Args:
        root: the folder.
        labels: "auto" (the rule above) or "none" (ignore class folders: unconditional).
    """

    def __init__(self, root: str | None, labels: str = "auto"):
        if root is None:
            raise UserError(Exit.CONFIG, "data.root needs a value: add data.root=...")
        self.root, self.labels = Path(root).expanduser(), labels
        if not self.root.is_dir():
            raise UserError(Exit.DATA, f"data.root={root}: no such folder")

    @cached_property
    def folders(self) -> dict[str, Path]:
        """Split name to folder."""
        inside = _folders(self.root)
        loose = any(is_picture(entry) for entry in os.scandir(self.root))
        if inside and not loose and all(folder.name.lower() in SPLIT_NAMES for folder in inside):
            found = {SPLIT_NAMES[folder.name.lower()]: folder for folder in inside}
            if "train" not in found:
                raise UserError(Exit.DATA, f"data.root={self.root} has {', '.join(found)} but no train folder")
            return found
        splits = {folder.name.lower(): folder.name for folder in inside if folder.name.lower() in SPLIT_NAMES}
        if len(splits) > 1 and "train" in splits:  # as classes, what is held out would be trained on
            others = ", ".join(folder.name for folder in inside if folder.name not in splits.values())
            told = f"has {', '.join(sorted(splits.values(), reverse=True))} and beside them {others or 'pictures'}"
            advice = f"move that elsewhere, or name data.root={self.root / splits['train']}"
            raise UserError(Exit.DATA, f"data.root={self.root} {told}: {advice}")
        return {"train": self.root}

    @cached_property
    def class_names(self) -> list[str]:
        if self.labels == "none":
            return []
        train = self.folders["train"]
        names = [folder.name for folder in _folders(train)]
        if len(names) < 2:
            return []
        empty = [name for name in names if not pictures_below(train / name)]
        if empty:
            raise UserError(
                Exit.DATA,
                f"{train}: class folder{'s' * (len(empty) > 1)} without pictures: {', '.join(empty)}; "
                "remove them, or set data.labels=none to train without classes",
            )
        return names

    @property
    def note(self) -> str | None:
        """What one would want to know of a folder in a folder: an archive unpacks so, and its classes are not seen."""
        inside = _folders(self.folders["train"])
        classes = _folders(inside[0]) if len(inside) == 1 and self.labels == "auto" else []
        if len(classes) < 2 or any(is_picture(entry) for entry in os.scandir(inside[0])):
            return None
        return f"{inside[0]} is the only folder in data.root, and has {len(classes)}: name it to have these as classes"

    def splits(self) -> dict[str, Split]:
        held_out = "val" if "val" in self.folders else "test"
        named = {"train": self.folders["train"], "val": self.folders.get(held_out)}
        return {name: self._split(folder) for name, folder in named.items() if folder}

    def _split(self, folder: Path) -> Split:
        if not self.class_names:
            paths = pictures_below(folder)
            labels = np.zeros(len(paths), dtype=np.int64)
        else:
            paths, labels = self._labelled(folder)
        if not paths:
            raise UserError(Exit.DATA, f"{folder}: no pictures found ({' '.join(sorted(SUFFIXES))})")
        return Split(paths, labels)

    def _labelled(self, folder: Path) -> tuple[list[Path], np.ndarray]:
        unknown = {path.name for path in _folders(folder)} - set(self.class_names)
        if unknown:
            raise UserError(Exit.DATA, f"{folder}: classes that the train folder lacks: {', '.join(sorted(unknown))}")
        if any(is_picture(entry) for entry in os.scandir(folder)):
            raise UserError(
                Exit.DATA,
                f"{folder} holds pictures that are in no class folder: move them into one, "
                "or set data.labels=none to train without classes",
            )
        per_class = [pictures_below(folder / name) if (folder / name).is_dir() else [] for name in self.class_names]
        labels = np.repeat(np.arange(len(per_class), dtype=np.int64), [len(paths) for paths in per_class])
        return [path for paths in per_class for path in paths], labels


def fingerprint(pictures: Sequence[Path] | np.ndarray | Rows | Stream) -> str:
    """Another one when the pictures are others: of files their names, sizes and times, nothing is read."""
    if not isinstance(pictures, list | np.ndarray):
        return pictures.fingerprint
    digest = hashlib.blake2b(digest_size=8)
    if isinstance(pictures, np.ndarray):
        digest.update(np.ascontiguousarray(pictures))
    else:
        for path in pictures:
            digest.update(file_state(path).encode(errors="surrogateescape"))
    return digest.hexdigest()


def file_state(path: Path) -> str:
    stat = os.stat(path) if os.path.exists(path) else os.lstat(path)  # a broken link is told of by decoding
    return f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n"


@contextmanager
def whole(path: Path) -> Iterator[None]:
    """Whatever reading a file raises becomes a message that names it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # gzip, zip, pickle, scipy and numpy have some ten kinds
        if isinstance(error, OSError) and error.errno:  # not allowed, disk full
            raise UserError(Exit.DATA, f"{error.filename or path}: {error.strerror}") from None
        why = str(error) or type(error).__name__
        raise UserError(Exit.DATA, f"{path} is damaged or half downloaded ({why}): remove it") from None


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name in JUNK


def is_picture(entry: os.DirEntry | Path) -> bool:
    return Path(entry.name).suffix.lower() in SUFFIXES and not _is_junk(entry.name)


def _folders(folder: Path) -> list[Path]:
    """Folders in a folder, sorted; a link back to where it came from is none."""
    here = folder.resolve()
    found = [path for path in folder.iterdir() if path.is_dir() and not _is_junk(path.name)]
    return sorted(path for path in found if path.resolve() not in (here, *here.parents))


def pictures_below(folder: Path) -> list[Path]:
    """Pictures at any depth, sorted; os.walk follows no links to folders, so a loop of links ends."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not _is_junk(name)]
        found += [Path(parent, name) for name in files if is_picture(Path(name))]
    return sorted(found)
