"""Several sources one after the other, with one list of classes."""

import os
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import numpy as np

from diffusion_lit.data.decoding import StoredImage
from diffusion_lit.data.sources.arrays import Arrays
from diffusion_lit.data.sources.data_source import ImageSequence, Split, fingerprint_images
from diffusion_lit.data.sources.folder import ImageFolder
from diffusion_lit.data.sources.listing import merge_left_out
from diffusion_lit.data.sources.path_table import PathTable
from diffusion_lit.imaging.sizes import ImageSize
from diffusion_lit.system.errors import DataError


class Concat:
    """Folders, arrays and tables of paths, each read with the defaults of its own source.

    Classes are united by name, in sorted order. Validation splits of the sources stay
    validation images.

    Args:
        sources: folders, `.npy` or `.npz` files, `.csv`, `.tsv` or `.parquet` files.
        labels: "auto", or "none" to train without classes.
        tile: of folders and tables, see `ImageFolder`.
        tile_margin: see `ImageFolder`.
        tile_spacing: see `ImageFolder`.
        captions: of folders, see `ImageFolder`; of tables all but "none" is their column.
    """

    def __init__(
        self,
        sources: list[str],
        labels: str = "auto",
        tile: ImageSize | None = None,
        tile_margin: int = 0,
        tile_spacing: int = 0,
        captions: str = "none",
    ):
        tiling = {"tile": tile, "tile_margin": tile_margin, "tile_spacing": tile_spacing}
        self.sources = {path: _make_source(path, labels, captions, tiling) for path in sources}

    @cached_property
    def class_names(self) -> list[str]:
        """Return the class names of all sources; empty without labels."""
        without = [path for path, source in self.sources.items() if not source.class_names]
        if without and len(without) < len(self.sources):
            raise DataError(
                f"data.sources: {', '.join(without)} has no classes, but others have. "
                "Set data.labels=none to train without classes."
            )
        return sorted({name for source in self.sources.values() for name in source.class_names})

    @property
    def notes(self) -> list[str]:
        """Return the notes of all sources."""
        return [note for source in self.sources.values() for note in getattr(source, "notes", ())]

    @property
    def left_out(self) -> dict[str, list[str]]:
        """Return what the sources leave out."""
        return merge_left_out(getattr(source, "left_out", {}) for source in self.sources.values())

    def splits(self) -> dict[str, Split]:
        """Return "train", and "val" if any of the sources has it."""
        numbers, parts = {name: k for k, name in enumerate(self.class_names)}, {"train": [], "val": []}
        for source in self.sources.values():
            new_labels = np.array([numbers[name] for name in source.class_names] or [0], dtype=np.int64)
            for name, split in source.splits().items():
                parts[name].append(replace(split, labels=new_labels[split.labels]))
        return {name: _join(splits) for name, splits in parts.items() if splits}


@dataclass(frozen=True)
class ConcatImages:
    """The images of several sequences as one."""

    parts: list[Sequence[Path] | np.ndarray | ImageSequence]

    @cached_property
    def ends(self) -> list[int]:
        """Return the position after the last image of each part."""
        return list(accumulate(map(len, self.parts)))

    @cached_property
    def fingerprint(self) -> str:
        """Return a digest of all parts."""
        return " ".join(map(fingerprint_images, self.parts))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, k: int) -> StoredImage:
        part = bisect(self.ends, k)
        return self.parts[part][k - self.ends[part]]  # counted from the end of the part


def _join(splits: Sequence[Split]) -> Split:
    captions = None
    if any(split.captions for split in splits):
        captions = [own for split in splits for own in split.captions or [()] * len(split.labels)]
    images, labels = ConcatImages([split.images for split in splits]), np.concatenate([s.labels for s in splits])
    return Split(images, labels, captions=captions)


def _make_source(path: str, labels: str, captions: str, tiling: dict) -> ImageFolder | Arrays | PathTable:
    suffix = Path(path).suffix.lower()
    if os.path.isdir(Path(path).expanduser()):
        return ImageFolder(path, labels, captions=captions, **tiling)
    if suffix in (".npy", ".npz"):
        return Arrays(path, labels=labels)
    if suffix in (".csv", ".tsv", ".parquet"):
        column = "none" if captions == "none" else "auto"
        return PathTable(path, label_column=labels, caption_column=column, **tiling)
    raise DataError(f"data.sources: {path[:300]} is not a folder, an array (.npy .npz) or a table (.csv .tsv .parquet)")
