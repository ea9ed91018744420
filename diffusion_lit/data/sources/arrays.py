"""Images in one array file: `.npy`, which is memory-mapped, or `.npz`."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from diffusion_lit.data.sources.data_source import Split, file_state, report_damaged_file
from diffusion_lit.system.errors import DataError

# usual names in an .npz; the first that exists is used
IMAGE_ARRAYS = ("images", "x_train", "sprites", "x", "data", "arr_0")
LABEL_ARRAYS = ("labels", "y_train", "y", "label", "targets", "arr_1")
VAL_ARRAYS = (("x_val", "y_val"), ("x_test", "y_test"), ("val_images", "val_labels"), ("test_images", "test_labels"))


class Arrays:
    """uint8 images (N, H, W) or (N, H, W, C) with labels (N,), or one-hot (N, K).

    An `.npy` is memory-mapped: only the images that are being decoded are in RAM. An `.npz`
    is compressed, so it is read as a whole.

    Args:
        images: the file.
        image_array: name of the array in an `.npz`; "auto": the first of `IMAGE_ARRAYS`.
        labels: "auto" (the first of `LABEL_ARRAYS` in an `.npz`), "none", an `.npy` file,
            or the name of an array.
        classes: class names; None: the array `classes` of an `.npz`, else the labels
            themselves.
        split_modulo: n, for arrays whose images repeat every n rows. Rows k, k + n, k +
            2n... stay in one split, and `data.val_fraction` is that of the n.
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
        if not os.path.isfile(self.path):
            raise DataError(f"data.images={images[:300]}: file not found")

    @property
    def class_names(self) -> list[str]:
        """Return the class names; empty without labels."""
        return self._classes[1]

    def splits(self) -> dict[str, Split]:
        """Return "train", and "val" if an `.npz` has one of the pairs in `VAL_ARRAYS`."""
        splits, values = {}, self._classes[0]
        for split, (name, array, labels) in self._arrays_of_splits.items():
            images = ArrayImages(array, f"{file_state(self.path)} {name}")
            groups = np.arange(len(array)) % self.split_modulo if self.split_modulo else None
            if unknown := sorted(set(labels.tolist()) - set(values)):
                raise DataError(f"{self.path}: labels of {name or split} that are not in training: {unknown[:10]}")
            splits[split] = Split(images, np.searchsorted(values, labels).astype(np.int64), groups)
        return splits

    @cached_property
    def _arrays(self) -> Mapping[str, np.ndarray]:
        arrays = _load(self.path)
        return {"images": arrays} if isinstance(arrays, np.ndarray) else arrays

    def _read(self, name: str) -> np.ndarray:
        with report_damaged_file(self.path):
            return self._arrays[name]

    @cached_property
    def _arrays_of_splits(self) -> dict[str, tuple[str, np.ndarray, np.ndarray]]:
        """Return the name of the array, the images and the labels (N,) of each split; labels are 0 without any."""
        name, auto = self.image_array, self.image_array == "auto"
        if auto:
            name = next((key for key in IMAGE_ARRAYS if key in self._arrays), None)
        if name not in self._arrays:
            missing = f"no array {name}" if name else "no array of a usual name"
            names = ", ".join(self._arrays)
            raise DataError(f"{self.path}: {missing}. Set data.image_array to one of {names}.")
        arrays = {"train": (name, *_check_pair(self._read(name), self._stored_labels, f"{self.path}, {name}"))}
        val = next((pair for pair in VAL_ARRAYS if pair[0] in self._arrays and pair[1] in self._arrays), None)
        if val and auto and self.labels in ("auto", "none") and not self.split_modulo:
            labels = self._read(val[1]) if self.labels == "auto" else None
            arrays["val"] = (val[0], *_check_pair(self._read(val[0]), labels, f"{self.path}, {val[0]}"))
        return arrays

    @cached_property
    def _stored_labels(self) -> np.ndarray | None:
        """Return the labels of the training images as they are in the file, or None."""
        name = self.labels
        if name == "auto":
            name = next((key for key in LABEL_ARRAYS if key in self._arrays), "none")
        if name in self._arrays:
            return self._read(name)
        if name == "none":
            return None
        path = Path(name).expanduser()
        labels = _load(path) if path.is_file() else None
        if not isinstance(labels, np.ndarray):
            names = ", ".join(self._arrays)
            raise DataError(f"data.labels={name}: neither an .npy file nor an array of {self.path} ({names})")
        return labels

    @cached_property
    def _classes(self) -> tuple[list, list[str]]:
        """Return the label values in order, and their names. Columns of one-hot labels are classes even if empty."""
        stored, labels = self._stored_labels, self._arrays_of_splits["train"][2]
        if stored is None:
            return [0], []
        values = list(range(stored.shape[1])) if _is_one_hot(stored) else sorted(set(labels.tolist()))
        names = self.classes
        if names is None and "classes" in self._arrays:
            names = self._read("classes")
        if names is None:
            names = values
        elif isinstance(values[0], int) and values[0] >= 0:  # a class may have no images
            values = list(range(max(values[-1] + 1, len(names))))
        names = [str(name) for name in names]
        if len(names) != len(values):
            raise DataError(f"{self.path}: {len(values)} classes, but {len(names)} names: {', '.join(names)}")
        return values, names


@dataclass(frozen=True)
class ArrayImages:
    """The images of an array, read from disk one by one if it is memory-mapped.

    Args:
        array: uint8 (N, H, W) or (N, H, W, C).
        fingerprint: name, size and time of its file.
    """

    array: np.ndarray
    fingerprint: str

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, k: int) -> np.ndarray:
        return np.asarray(self.array[k])


def _load(path: Path) -> np.ndarray | Mapping[str, np.ndarray]:
    """Return the array of an `.npy`, memory-mapped, or those of an `.npz`, each read when it is indexed."""
    with report_damaged_file(path):
        return np.load(path, mmap_mode="r")  # refuses pickles


def _check_pair(images: np.ndarray, labels: np.ndarray | None, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images (N, H, W) or (N, H, W, C) and labels (N,), 0 without labels."""
    shape = images.shape
    if images.dtype != np.uint8:
        raise DataError(f"{where}: type {images.dtype}. Save images as uint8, 0 to 255.")
    if len(shape) not in (3, 4) or not images.size or (len(shape) == 4 and shape[3] not in (1, 2, 3, 4)):
        hint = " np.moveaxis(array, 1, 3) moves channels last." if len(shape) == 4 and shape[1] < 5 else ""
        raise DataError(f"{where}: shape {shape}. Images are (N, H, W) or (N, H, W, C).{hint}")
    images = images[..., 0] if shape[3:] == (1,) else images
    return images, np.zeros(len(images), np.int64) if labels is None else _flatten_labels(labels, where, len(images))


def _is_one_hot(labels: np.ndarray) -> bool:
    return labels.ndim == 2 and labels.shape[1] > 1


def _flatten_labels(labels: np.ndarray, where: str, n: int) -> np.ndarray:
    """Return labels (n,) as integers or text, from any type, flat or one-hot."""
    if len(labels) != n or labels.ndim > 2:
        raise DataError(f"{where}: labels of shape {labels.shape}. For {n} images use ({n},) or one-hot ({n}, K).")
    if _is_one_hot(labels):
        wrong = np.flatnonzero(((labels != 0) & (labels != 1)).any(1) | ((labels != 0).sum(1) != 1))
        if len(wrong):
            raise DataError(f"{where}: row {wrong[0]} is not one-hot: {labels[wrong[0]]}")
        return labels.argmax(1)
    labels = labels.reshape(n)
    if labels.dtype.kind == "f" and (labels != np.round(labels)).any():
        raise DataError(f"{where}: labels are not integers, such as {labels[0]}")
    return labels.astype(np.int64) if labels.dtype.kind in "fiub" else labels.astype(str)
