"""Pictures that lie in one array: `.npy`, read from disk row by row, or `.npz`."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from diffusion_lit.data.sources.folder import Split, file_state, whole
from diffusion_lit.system.errors import Exit, UserError

IMAGES = ("images", "x_train", "sprites", "x", "data", "arr_0")  # usual names in an .npz, the first counts
LABELS = ("labels", "y_train", "y", "label", "targets", "arr_1")
HELD_OUT = (("x_val", "y_val"), ("x_test", "y_test"), ("val_images", "val_labels"), ("test_images", "test_labels"))


class Arrays:
    """uint8 pictures (N, H, W) or (N, H, W, C) with labels (N,), or one-hot (N, K) of any type.

    An `.npy` is memory-mapped: only the rows that are being decoded are in RAM. An `.npz` is packed and cannot be.

    Args:
        images: the file.
        image_array: name of the array in an `.npz`; "auto": one of `IMAGES`.
        labels: "auto" (one of `LABELS` in an `.npz`), "none", a file, or the name of an array in the `.npz`.
        classes: their names; None: the array `classes` of an `.npz`, else the labels themselves.
        split_modulo: n, for arrays whose pictures come again every n rows: rows k, k + n, k + 2n... are held out
            together, and `data.val_fraction` is that of the n.
    """

    def __init__(
        self,
        images: str,
        image_array: str = "auto",
        labels: str = "auto",
        classes: list[str] | None = None,
        split_modulo: int | None = None,
    ):
        self.path, self.image_array, self.labels = Path(images).expanduser(), image_array, labels
        self.classes, self.split_modulo = classes, split_modulo
        if not self.path.is_file():
            raise UserError(Exit.DATA, f"data.images={images}: no such file")

    @property
    def class_names(self) -> list[str]:
        return self._classes[1]

    def splits(self) -> dict[str, Split]:
        splits, known = {}, self._classes[0]
        for part, (name, images, labels) in self.parts.items():
            pictures = ArrayRows(images, f"{file_state(self.path)} {name}", np.arange(len(images)))
            groups = np.arange(len(images)) % self.split_modulo if self.split_modulo else None
            if unknown := sorted(set(labels.tolist()) - set(known)):
                raise UserError(Exit.DATA, f"{self.path}: labels of {name or part} that are no class: {unknown[:10]}")
            splits[part] = Split(pictures, np.searchsorted(known, labels).astype(np.int64), groups)
        return splits

    @cached_property
    def arrays(self) -> Mapping[str, np.ndarray]:
        found = _read(self.path)
        return {"images": found} if isinstance(found, np.ndarray) else found

    @cached_property
    def parts(self) -> dict[str, tuple[str, np.ndarray, np.ndarray]]:
        """Split name to the name of its array, pictures, and labels (N,), all 0 if there are none."""
        image = next((k for k in IMAGES if k in self.arrays), None) if self.image_array == "auto" else self.image_array
        if image not in self.arrays:
            what = f"no array {image}" if image else "no array of a usual name"
            raise UserError(
                Exit.DATA, f"{self.path} has {what}, but {', '.join(self.arrays)}: name one with data.image_array=..."
            )
        parts = {"train": (image, *_pair(self.arrays[image], self.stored_labels, f"{self.path}, {image}"))}
        own = next((pair for pair in HELD_OUT if pair[0] in self.arrays and pair[1] in self.arrays), None)
        if own and self.image_array == "auto" and self.labels in ("auto", "none") and not self.split_modulo:
            images, labels = self.arrays[own[0]], self.arrays[own[1]] if self.labels == "auto" else None
            parts["val"] = (own[0], *_pair(images, labels, f"{self.path}, {own[0]}"))
        return parts

    @cached_property
    def stored_labels(self) -> np.ndarray | None:
        """Those of the training pictures, as they are in the file."""
        name = next((k for k in LABELS if k in self.arrays), "none") if self.labels == "auto" else self.labels
        if name == "none" or name in self.arrays:
            return self.arrays.get(name)
        path = Path(name).expanduser()
        labels = _read(path) if path.is_file() else None
        if not isinstance(labels, np.ndarray):
            names = ", ".join(self.arrays)
            raise UserError(Exit.DATA, f"data.labels={name}: no such .npy file, and no array of {self.path} ({names})")
        return labels

    @cached_property
    def _classes(self) -> tuple[list, list[str]]:
        """Label values in order, and their names. One-hot columns are classes even if no picture has them."""
        stored, labels = self.stored_labels, self.parts["train"][2]
        if stored is None:
            return [0], []
        known = list(range(stored.shape[1])) if _is_one_hot(stored) else sorted(set(labels.tolist()))
        names = self.classes
        if names is None and "classes" in self.arrays:
            names = [str(name) for name in self.arrays["classes"]]
        if names is None:
            return known, [str(value) for value in known]
        if isinstance(known[0], int) and known[0] >= 0:  # a class may have no pictures
            known = list(range(max(known[-1] + 1, len(names))))
        if len(names) != len(known):
            raise UserError(Exit.DATA, f"{self.path}: {len(known)} classes, but {len(names)} names: {', '.join(names)}")
        return known, list(names)


@dataclass(frozen=True)
class ArrayRows:
    """Pictures of an array, read from disk one by one if it is memory-mapped."""

    array: np.ndarray
    file: str  # its name, size and time
    rows: np.ndarray

    @property
    def fingerprint(self) -> str:
        return hashlib.blake2b(self.file.encode(errors="surrogateescape") + self.rows.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, k: int | np.ndarray) -> "np.ndarray | ArrayRows":
        if isinstance(k, np.ndarray):
            return ArrayRows(self.array, self.file, self.rows[k])
        return np.asarray(self.array[self.rows[k]])


def _read(path: Path) -> np.ndarray | Mapping[str, np.ndarray]:
    """The array of an `.npy`, memory-mapped; or what reads those of an `.npz` by name. Pickles are refused."""
    with whole(path):
        found = np.load(path, mmap_mode="r")
        return found if isinstance(found, np.ndarray) else Npz(path)


class Npz(Mapping):
    """Arrays of an `.npz`, each read when it is asked for."""

    def __init__(self, path: Path):
        self.path = path
        with np.load(path) as file:
            self.names = list(file)

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.names:
            raise KeyError(name)
        with whole(self.path), np.load(self.path) as file:
            return file[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def _pair(images: np.ndarray, labels: np.ndarray | None, where: str) -> tuple[np.ndarray, np.ndarray]:
    images = _pictures(images, where)
    return images, np.zeros(len(images), np.int64) if labels is None else _flat(labels, where, len(images))


def _pictures(array: np.ndarray, where: str) -> np.ndarray:
    if array.dtype != np.uint8:
        raise UserError(Exit.DATA, f"{where} is {array.dtype}: save pictures as uint8, 0 to 255")
    if array.ndim not in (3, 4) or not array.size or (array.ndim == 4 and array.shape[3] not in (1, 2, 3, 4)):
        hint = "; np.moveaxis(array, 1, 3) puts channels last" if array.ndim == 4 and array.shape[1] < 5 else ""
        raise UserError(Exit.DATA, f"{where} is {array.shape}: pictures are (N, H, W) or (N, H, W, C){hint}")
    return array[..., 0] if array.ndim == 4 and array.shape[3] == 1 else array


def _is_one_hot(labels: np.ndarray) -> bool:
    return labels.ndim == 2 and labels.shape[1] > 1


def _flat(labels: np.ndarray, where: str, n: int) -> np.ndarray:
    """Labels (n,) as integers or text, whatever they are stored as."""
    if len(labels) != n or labels.ndim > 2:
        raise UserError(Exit.DATA, f"{where} is {labels.shape}: labels of {n} pictures are ({n},) or one-hot ({n}, K)")
    if _is_one_hot(labels):
        wrong = np.flatnonzero(((labels != 0) & (labels != 1)).any(1) | ((labels != 0).sum(1) != 1))
        if len(wrong):
            raise UserError(Exit.DATA, f"{where}: row {wrong[0]} is not one-hot: {labels[wrong[0]]}")
        return labels.argmax(1)
    labels = labels.reshape(n)
    if labels.dtype.kind == "f" and (labels != np.round(labels)).any():
        raise UserError(Exit.DATA, f"{where} holds numbers that are no classes, such as {labels[0]}")
    return labels.astype(np.int64) if labels.dtype.kind in "fiub" else labels.astype(str)
