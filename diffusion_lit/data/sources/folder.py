"""A folder of images."""

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from diffusion_lit.data.captions import list_captions
from diffusion_lit.data.sources.data_source import SPLIT_NAMES, Split
from diffusion_lit.data.sources.listing import Listing, format_left_out, list_files, list_folders, merge_left_out
from diffusion_lit.data.sources.tiles import cut_sheets, list_left_out, make_tiling
from diffusion_lit.imaging.sizes import ImageSize
from diffusion_lit.system.console import join_names
from diffusion_lit.system.errors import ConfigError, DataError
from diffusion_lit.system.files import normalize_name

UNUSED = "folders that are not used, beside train and a validation folder: move them elsewhere"


class ImageFolder:
    """A folder of images. Its layout decides what it means.

    - A folder that holds only folders named train, val or test has these splits. Other
      folders beside train and another split are an error.
    - Two or more folders with images, in a split or in the root, are classes, named by
      folder, in sorted order.
    - Otherwise the images have no labels.

    Images are found at any depth, and recognized by their extension or their first bytes.
    What is left out, such as dot files, dead links and files that Pillow cannot decode, is
    counted in `left_out`.

    Args:
        root: the folder.
        labels: "auto" as above, or "none" to ignore class folders.
        tile: px, one number or (height, width), of the tiles that the images are cut into;
            None: the images are used as they are. Empty tiles are left out.
        tile_margin: px around the tiles of an image.
        tile_spacing: px between two tiles.
        captions: "none", "filename", "sidecar", "column" or "auto", see
            `diffusion_lit.data.captions.list_captions`.
    """

    def __init__(
        self,
        root: str | None,
        labels: str = "auto",
        tile: ImageSize | None = None,
        tile_margin: int = 0,
        tile_spacing: int = 0,
        captions: str = "none",
    ):
        if root is None:
            raise ConfigError("data.root needs a value: add data.root=...")
        self.root, self.labels, self.captions = Path(root).expanduser(), labels, captions
        self.tiling = make_tiling(tile, tile_margin, tile_spacing)
        if os.path.isfile(self.root):
            raise DataError(f"data.root={root}: is a file. Unpack it, or name the folder of the images.")
        if not os.path.isdir(self.root):
            raise DataError(f"data.root={root[:300]}: folder not found")
        self._listings: dict[Path, Listing] = {}

    def _list(self, folder: Path) -> Listing:
        if folder not in self._listings:
            self._listings[folder] = list_files(folder)
        return self._listings[folder]

    @cached_property
    def folders(self) -> dict[str, Path]:
        """Return the folder of each split."""
        inside = list_folders(self.root)
        splits = {folder.name.lower(): folder for folder in inside if folder.name.lower() in SPLIT_NAMES}
        train = next((folder for name, folder in splits.items() if SPLIT_NAMES[name] == "train"), None)
        only_splits = all(folder.name.lower() in SPLIT_NAMES for folder in inside)
        if inside and only_splits and not list_files(self.root, recursive=False).images:
            if train is None:
                names = ", ".join(SPLIT_NAMES[name] for name in splits)
                raise DataError(f"data.root={self.root}: has {names} but no train folder")
            return {SPLIT_NAMES[name]: folder for name, folder in splits.items()}
        if len(splits) > 1 and train:  # as classes, the validation images would be trained on
            names = ", ".join(sorted((folder.name for folder in splits.values()), reverse=True))
            others = ", ".join(folder.name for folder in inside if folder not in splits.values()) or "images"
            raise DataError(
                f"data.root={self.root}: has {names} and beside them {others}. "
                f"Move {others} elsewhere, or set data.root={train}."
            )
        return {"train": self.root}

    @cached_property
    def class_names(self) -> list[str]:
        """Return the names of the class folders; empty without labels."""
        train = self.folders["train"]
        names = sorted({normalize_name(folder.name) for folder in list_folders(train)})
        if self.labels == "none" or len(names) < 2:
            return []
        filled = {normalize_name(path.relative_to(train).parts[0]) for path in self._list(train).images}
        if empty := [name for name in names if name not in filled]:
            plural = "s" * (len(empty) > 1)
            raise DataError(
                f"{train}: class folder{plural} without images: {join_names(empty)}. Add images, remove the "
                f"folder{plural}, or set data.labels=none to train without classes.{self._explain(train, empty)}"
            )
        return names

    def _explain(self, folder: Path, names: Sequence[str] = ()) -> str:
        """Return what was left out in a folder, or in those of these names in it, for an error."""
        inside = [folder / name for name in names] or [folder]
        left_out = {
            reason: [path for path in paths if any(path.is_relative_to(place) for place in inside)]
            for reason, paths in self._list(folder).left_out.items()
        }
        return "".join(f"\n  left out: {line}" for line in format_left_out(merge_left_out([left_out])))

    @cached_property
    def left_out(self) -> dict[str, list[str]]:
        """Return the paths that are not used, by the reason, which may say what to do."""
        root, train, val = self.root, self.folders["train"], self.folders.get("val", self.folders.get("test"))
        parts = [self._list(folder).left_out for folder in (train, val) if folder]
        if train != root:
            used = [folder for folder in list_folders(root) if folder not in (train, val)]
            parts += [list_files(root, recursive=False).left_out, {UNUSED: used}]
        return merge_left_out([*parts, list_left_out(self.splits().values()) if self.tiling else {}])

    @property
    def notes(self) -> list[str]:
        """Return a hint if the root holds one folder with class folders, as unpacked archives do.

        The classes of that folder are not used.
        """
        inside = list_folders(self.folders["train"])
        classes = list_folders(inside[0]) if len(inside) == 1 and self.labels == "auto" else []
        if len(classes) < 2 or self._has_loose_images(self.folders["train"], inside[0]):
            return []
        return [f"{inside[0]} is the only folder in data.root and has {len(classes)}: name it to use these as classes"]

    def _has_loose_images(self, listed: Path, folder: Path) -> bool:
        """Return whether images lie in this folder itself, which is in a listed one."""
        return any(path.parent == folder for path in self._list(listed).images)

    def splits(self) -> dict[str, Split]:
        """Return "train", and "val" if there is a val or test folder."""
        folders = {"train": self.folders["train"], "val": self.folders.get("val", self.folders.get("test"))}
        return {name: self._list_split(folder) for name, folder in folders.items() if folder}

    def _list_split(self, folder: Path) -> Split:
        paths = self._list(folder).images
        if not paths:
            raise DataError(f"{folder}: no images found.{self._explain(folder) or ' It is empty.'}")
        captions = list_captions(self.captions, paths, folder)
        if not self.class_names:
            return cut_sheets(Split(paths, np.zeros(len(paths), dtype=np.int64), captions=captions), self.tiling)
        self._check_classes(folder)
        numbers = {name: k for k, name in enumerate(self.class_names)}
        depth = len(folder.parts)
        labels = np.array([numbers[normalize_name(path.parts[depth])] for path in paths], dtype=np.int64)
        return cut_sheets(Split(paths, labels, captions=captions), self.tiling)

    def _check_classes(self, folder: Path) -> None:
        unknown = {normalize_name(path.name) for path in list_folders(folder)} - set(self.class_names)
        if unknown:
            raise DataError(f"{folder}: classes that are not in the train folder: {join_names(sorted(unknown))}")
        if self._has_loose_images(folder, folder):
            raise DataError(
                f"{folder}: has images outside of the class folders. "
                "Move them into one, or set data.labels=none to train without classes."
            )
