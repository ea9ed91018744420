"""Images in one array file: `.npy`, which is memory-mapped, or `.npz`."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from diffusion_lit.data.deep_images import require_finite
from diffusion_lit.data.sources.data_source import Split, file_state, report_damaged_file
from diffusion_lit.data.sources.table_labels import (
    describe_unused_columns,
    find_missing_labels,
    name_classes,
    sort_classes,
)
from diffusion_lit.system.console import join_names
from diffusion_lit.system.errors import DataError
from diffusion_lit.system.files import normalize_name

# usual names in an .npz; the first that exists is used
IMAGE_ARRAYS = ("images", "x_train", "sprites", "x", "data", "arr_0")
LABEL_ARRAYS = ("labels", "y_train", "y", "label", "targets", "arr_1")
VAL_ARRAYS = (("x_val", "y_val"), ("x_test", "y_test"), ("val_images", "val_labels"), ("test_images", "test_labels"))


class Arrays:
    """Images (N, H, W) or (N, H, W, C), uint8 or in `data.value_range`, with labels (N,), or one-hot (N, K).

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

    @property
    def notes(self) -> list[str]:
        """Return what is not used of an `.npz`: arrays that could be labels, and others."""
        arrays, used, n = self._arrays, {self.labels, "classes"}, len(self._arrays_of_splits["train"][1])
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            return []
        used |= {name for name, _, _ in self._arrays_of_splits.values()}
        used |= {labels for images, labels in VAL_ARRAYS if images in used}
        if self.labels == "auto":
            used.add(next((name for name in LABEL_ARRAYS if name in arrays), None))
        others = [name for name in arrays if name not in used and (self.labels == "auto" or name not in LABEL_ARRAYS)]
        sizes = {info.filename.removesuffix(".npy"): info.file_size for info in arrays.zip.infolist()}
        columns = {name: self._read(name) for name in others if sizes[name] < 1000 * n}  # others are no labels
        columns = {name: array.tolist() for name, array in columns.items() if array.shape == (n,)}
        notes = describe_unused_columns(columns, self._stored_labels[0] is None, "data.labels")
        rest = [name for name in others if name not in columns]
        return notes + [f"arrays of {self.path} that are not used: {join_names(rest)}"] * bool(rest)

    def splits(self) -> dict[str, Split]:
        """Return "train", and "val" if an `.npz` has one of the pairs in `VAL_ARRAYS`."""
        splits, values = {}, self._classes[0]
        for split, (name, array, labels) in self._arrays_of_splits.items():
            images = ArrayImages(array, f"{file_state(self.path)} {name}", f"{self.path}, {name or split}")
            groups = np.arange(len(array)) % self.split_modulo if self.split_modulo else None
            if unknown := sorted(set(labels.tolist()) - set(values)):
                raise DataError(f"{self.path}: labels of {name or split} that are not in training: {unknown[:10]}")
            numbers = {value: k for k, value in enumerate(values)}
            splits[split] = Split(images, np.array([numbers[label] for label in labels.tolist()], np.int64), groups)
        return splits

    @cached_property
    def _arrays(self) -> Mapping[str, np.ndarray]:
        arrays = load_array_file(self.path)
        return {"images": arrays} if isinstance(arrays, np.ndarray) else arrays

    def _read(self, name: str) -> np.ndarray:
        with report_damaged_file(self.path, name):
            array = self._arrays[name]
        if not isinstance(array, np.ndarray):  # another file in the archive
            raise DataError(f"{self.path}, {name}: is not an array. Save arrays with np.savez.")
        return array

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
        arrays = {"train": (name, *_check_pair(self._read(name), f"{self.path}, {name}", *self._stored_labels))}
        val = next((pair for pair in VAL_ARRAYS if pair[0] in self._arrays and pair[1] in self._arrays), None)
        if val and auto and self.labels in ("auto", "none") and not self.split_modulo:
            labels = self._read(val[1]) if self.labels == "auto" else None
            where = f"{self.path}, {val[0]}", labels, f"{self.path}, {val[1]}"
            arrays["val"] = (val[0], *_check_pair(self._read(val[0]), *where))
        return arrays

    @cached_property
    def _stored_labels(self) -> tuple[np.ndarray | None, str]:
        """Return the labels of the training images as they are in the file, or None, and what messages call them."""
        name = self.labels
        if name == "auto":
            name = next((key for key in LABEL_ARRAYS if key in self._arrays), "none")
        if name in self._arrays:
            return self._read(name), f"{self.path}, {name}"
        if name == "none":
            return None, ""
        path = Path(name).expanduser()
        labels = load_array_file(path) if os.path.isfile(path) else None
        if not isinstance(labels, np.ndarray):
            names = ", ".join(self._arrays)
            raise DataError(f"data.labels={name}: neither an .npy file nor an array of {self.path} ({names})")
        return labels, str(path)

    @cached_property
    def _classes(self) -> tuple[list, list[str]]:
        """Return the label values in order, and their names. Columns of one-hot labels are classes even if empty."""
        stored, labels = self._stored_labels[0], self._arrays_of_splits["train"][2]
        if stored is None:
            return [0], []
        found = set(labels.tolist())
        values = sort_classes(found) if labels.dtype.kind == "U" else sorted(found)
        values = list(range(stored.shape[1])) if _is_one_hot(stored) else values
        names = self.classes
        if names is None and "classes" in self._arrays:
            names = _decode_text(self._read("classes"), f"{self.path}, classes")
        if names is None:
            names = values
        elif isinstance(values[0], int) and values[0] >= 0:  # a class may have no images
            values = list(range(max(values[-1] + 1, len(names))))
        names = [normalize_name(str(name)) for name in names]
        if len(set(names)) < len(names):
            raise DataError(f"{self.path}: two classes have the same name: {join_names(names)}")
        if len(names) != len(values):
            raise DataError(f"{self.path}: {len(values)} classes, but {len(names)} names: {', '.join(names)}")
        return values, names


@dataclass(frozen=True)
class ArrayImages:
    """The images of an array, read from disk one by one if it is memory-mapped.

    Args:
        array: (N, H, W) or (N, H, W, C).
        fingerprint: name, size and time of its file.
        name: of the array in messages.
    """

    array: np.ndarray
    fingerprint: str
    name: str

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, k: int) -> np.ndarray:
        image = np.asarray(self.array[k])
        try:
            require_finite(image)
        except ValueError as error:
            raise DataError(f"{self.name}, row {k}: {error}") from None
        return image


def load_array_file(path: Path) -> np.ndarray | Mapping[str, np.ndarray]:
    """Return the array of an `.npy`, memory-mapped, or those of an `.npz`, each read when it is indexed."""
    with report_damaged_file(path):
        with open(path, "rb") as file:
            if not file.read(6).startswith((b"\x93NUMPY", b"PK\3\4", b"PK\5\6")):  # numpy would take it for a pickle
                raise ValueError("it does not begin as .npy and .npz files do")
        return np.load(path, mmap_mode="r")  # refuses pickles


def _check_pair(
    images: np.ndarray, where: str, labels: np.ndarray | None, where_labels: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return images (N, H, W) or (N, H, W, C) and labels (N,), 0 without labels."""
    shape = images.shape
    if images.dtype.kind not in "buif":
        raise DataError(f"{where}: type {images.dtype}. Save images as uint8, 0 to 255, or as other numbers.")
    if len(shape) not in (3, 4) or not images.size or (len(shape) == 4 and shape[3] not in (1, 2, 3, 4)):
        hint = " np.moveaxis(array, 1, 3) moves channels last." if len(shape) == 4 and shape[1] < 5 else ""
        raise DataError(f"{where}: shape {shape}. Images are (N, H, W) or (N, H, W, C).{hint}")
    images = images[..., 0] if shape[3:] == (1,) else images
    n = len(images)
    return images, np.zeros(n, np.int64) if labels is None else _flatten_labels(labels, where_labels, n)


def _is_one_hot(labels: np.ndarray) -> bool:
    return labels.ndim == 2 and labels.shape[1] > 1


def _flatten_labels(labels: np.ndarray, where: str, n: int) -> np.ndarray:
    """Return labels (n,) as integers or text, from any type, flat or one-hot."""
    if len(labels) != n or labels.ndim > 2:
        raise DataError(f"{where}: labels of shape {labels.shape}. For {n} images use ({n},) or one-hot ({n}, K).")
    if _is_one_hot(labels):
        _require_labels(labels, where, "biuf")
        wrong = np.flatnonzero(((labels != 0) & (labels != 1)).any(1) | ((labels != 0).sum(1) != 1))
        if len(wrong):
            raise DataError(f"{where}: {_count(wrong)} not one-hot, such as row {wrong[0]}: {labels[wrong[0]]}")
        return labels.argmax(1)
    labels = labels.reshape(n)
    _require_labels(labels, where, "biufUS")
    if labels.dtype.kind in "US":
        texts = _decode_text(labels, where)
        missing = np.array(find_missing_labels(texts), dtype=np.int64)
        labels = np.array(name_classes(texts, where), dtype=str)
    else:
        missing = np.flatnonzero(~np.isfinite(labels) | (labels != np.round(labels)))
    if len(missing):
        examples = join_names([f"row {k} ({labels[k].item()!r})" for k in missing], 5)
        raise DataError(f"{where}: {_count(missing)} not integers or names: {examples}")
    return labels.astype(np.int64) if labels.dtype.kind in "fiub" else labels


def _count(rows: np.ndarray) -> str:
    return f"{len(rows):,} label{'s are' if len(rows) > 1 else ' is'}"


def _require_labels(labels: np.ndarray, where: str, kinds: str) -> None:
    if labels.dtype.kind not in kinds:
        raise DataError(f"{where}: type {labels.dtype}. Labels are integers or text (N,), or numbers one-hot (N, K).")


def _decode_text(array: np.ndarray, where: str) -> list:
    """Return the values of an array; bytes as UTF-8 text."""
    try:
        return [value.decode() if isinstance(value, bytes) else value for value in array.tolist()]
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: text that is not UTF-8 ({error.reason}). Save it as np.array(..., dtype=str)."
        ) from None
