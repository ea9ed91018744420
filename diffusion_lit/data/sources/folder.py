"""A folder of images."""

import os
from functools import cached_property
from pathlib import Path

import numpy as np

from diffusion_lit.data.sources.data_source import SPLIT_NAMES, Split
from diffusion_lit.system.errors import DataError, Exit, UserError

SUFFIXES = {".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff"}
JUNK = {"__MACOSX", "@eaDir"}  # besides everything that starts with a dot


class ImageFolder:
    """A folder of images. Its layout decides what it means.

    - A folder that holds only folders named train, val or test has these splits. Other
      folders beside train and another split are an error.
    - Two or more folders with images, in a split or in the root, are classes, named by
      folder, in sorted order.
    - Otherwise the images have no labels.

    Images are found at any depth. Dot files, `__MACOSX` and the like are ignored.

    Args:
        root: the folder.
        labels: "auto" as above, or "none" to ignore class folders.
    """

    def __init__(self, root: str | None, labels: str = "auto"):
        if root is None:
            raise UserError(Exit.CONFIG, "data.root needs a value: add data.root=...")
        self.root, self.labels = Path(root).expanduser(), labels
        if not os.path.isdir(self.root):
            raise DataError(f"data.root={root[:300]}: folder not found")

    @cached_property
    def folders(self) -> dict[str, Path]:
        """Return the folder of each split."""
        inside = list_folders(self.root)
        splits = {folder.name.lower(): folder for folder in inside if folder.name.lower() in SPLIT_NAMES}
        only_splits = all(folder.name.lower() in SPLIT_NAMES for folder in inside)
        if inside and only_splits and not _has_images(self.root):
            if "train" not in splits:
                names = ", ".join(SPLIT_NAMES[name] for name in splits)
                raise DataError(f"data.root={self.root}: has {names} but no train folder")
            return {SPLIT_NAMES[name]: folder for name, folder in splits.items()}
        if len(splits) > 1 and "train" in splits:  # as classes, the validation images would be trained on
            names = ", ".join(sorted((folder.name for folder in splits.values()), reverse=True))
            others = ", ".join(folder.name for folder in inside if folder not in splits.values()) or "images"
            raise DataError(
                f"data.root={self.root}: has {names} and beside them {others}. "
                f"Move {others} elsewhere, or set data.root={splits['train']}."
            )
        return {"train": self.root}

    @cached_property
    def class_names(self) -> list[str]:
        """Return the names of the class folders; empty without labels."""
        train = self.folders["train"]
        names = [folder.name for folder in list_folders(train)]
        if self.labels == "none" or len(names) < 2:
            return []
        empty = [name for name in names if not list_images(train / name)]
        if empty:
            raise DataError(
                f"{train}: class folder{'s' * (len(empty) > 1)} without images: {', '.join(empty)}. "
                "Remove them, or set data.labels=none to train without classes."
            )
        return names

    @property
    def notes(self) -> list[str]:
        """Return a hint if the root holds one folder with class folders, as unpacked archives do.

        The classes of that folder are not used.
        """
        inside = list_folders(self.folders["train"])
        classes = list_folders(inside[0]) if len(inside) == 1 and self.labels == "auto" else []
        if len(classes) < 2 or _has_images(inside[0]):
            return []
        return [f"{inside[0]} is the only folder in data.root and has {len(classes)}: name it to use these as classes"]

    def splits(self) -> dict[str, Split]:
        """Return "train", and "val" if there is a val or test folder."""
        folders = {"train": self.folders["train"], "val": self.folders.get("val", self.folders.get("test"))}
        return {name: self._list_split(folder) for name, folder in folders.items() if folder}

    def _list_split(self, folder: Path) -> Split:
        if not self.class_names:
            paths = list_images(folder)
            labels = np.zeros(len(paths), dtype=np.int64)
        else:
            self._check_classes(folder)
            per_class = [list_images(folder / name) for name in self.class_names]
            paths = [path for paths in per_class for path in paths]
            labels = np.repeat(np.arange(len(per_class), dtype=np.int64), [len(paths) for paths in per_class])
        if not paths:
            raise DataError(f"{folder}: no images found ({' '.join(sorted(SUFFIXES))})")
        return Split(paths, labels)

    def _check_classes(self, folder: Path) -> None:
        unknown = {path.name for path in list_folders(folder)} - set(self.class_names)
        if unknown:
            raise DataError(f"{folder}: classes that are not in the train folder: {', '.join(sorted(unknown))}")
        if _has_images(folder):
            raise DataError(
                f"{folder}: has images outside of the class folders. "
                "Move them into one, or set data.labels=none to train without classes."
            )


def is_image_file(path: os.DirEntry | Path) -> bool:
    """Return whether a path has the suffix of an image and is no hidden file."""
    return Path(path.name).suffix.lower() in SUFFIXES and not _is_junk(path.name)


def list_folders(folder: Path) -> list[Path]:
    """Return the folders in a folder, sorted, without links back to it or to one of its parents."""
    here = folder.resolve()
    inside = [path for path in folder.iterdir() if path.is_dir() and not _is_junk(path.name)]
    return sorted(path for path in inside if path.resolve() not in (here, *here.parents))


def list_images(folder: Path) -> list[Path]:
    """Return the images at any depth, sorted; empty for a missing folder. Links to folders are not followed."""
    images = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not _is_junk(name)]
        images += [Path(parent, name) for name in files if is_image_file(Path(name))]
    return sorted(images)


def _has_images(folder: Path) -> bool:
    return any(is_image_file(entry) for entry in os.scandir(folder))


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name in JUNK
