"""Images of any map-style `torch.utils.data.Dataset`, which is read once."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image

from diffusion_lit.config.targets import build
from diffusion_lit.data.sources.folder import Split
from diffusion_lit.system.errors import Exit, UserError

ITEM = "return (image, label), the image alone, or a dict with image and label"


class DatasetSource:
    """The items of a dataset: `(image, label)`, an image, or a dict with the keys image and label.

    An image is a PIL image, a uint8 array (H, W) or (H, W, C), or a tensor (H, W) or (C, H, W), uint8 or float in
    `value_range`. Items are decoded into the store once, so random augmentation belongs in `data.transforms`. Where the
    dataset has `targets` (labels, in order) or `classes` (their names), as those of torchvision do, they are used.

    Args:
        dataset: the dataset, or its class by `_target_` with the arguments.
        val_dataset: one for validation; without it `data.val_fraction` of the images are kept for that.
        labels: "auto", or "none" to ignore labels.
        value_range: of float tensors, black and white: [0, 1] after `ToTensor`, [-1, 1] after `Normalize(0.5, 0.5)`.
    """

    def __init__(
        self, dataset: Any, val_dataset: Any = None, labels: str = "auto", value_range: Sequence[float] = (0, 1)
    ):
        found = {"train": ("data.dataset", dataset), "val": ("data.val_dataset", val_dataset)}
        self.labels = labels
        self.rows = {
            part: DatasetRows(_map_style(key, leaf), key, tuple(value_range))
            for part, (key, leaf) in found.items()
            if leaf is not None
        }

    @cached_property
    def class_names(self) -> list[str]:
        if self.labels == "none" or self.rows["train"].labels is None:
            return []
        return [*map(str, getattr(self.rows["train"].dataset, "classes", self._values))]

    @cached_property
    def _values(self) -> list[int]:
        """The label of each class, in order."""
        train = self.rows["train"]
        return list(range(len(train.dataset.classes))) if hasattr(train.dataset, "classes") else sorted({*train.labels})

    def splits(self) -> dict[str, Split]:
        return {part: Split(rows, self._labels_of(rows)) for part, rows in self.rows.items()}

    def _labels_of(self, rows: "DatasetRows") -> np.ndarray:
        if not self.class_names:
            return np.zeros(len(rows), np.int64)
        if rows.labels is None or not set(rows.labels) <= set(self._values):
            raise UserError(Exit.DATA, f"{rows.key}: every label must be one of {self._values}, as in training.")
        return np.searchsorted(self._values, rows.labels).astype(np.int64)


@dataclass(frozen=True)
class DatasetRows:
    """Some items of a dataset as `diffusion_lit.data.sources.folder.Rows`; `key` stands in messages."""

    dataset: Any
    key: str
    value_range: tuple[float, float]
    places: np.ndarray | None = None  # of the items; None: all
    lock: Lock = Lock()  # datasets are made for processes, not for threads

    def __len__(self) -> int:
        return len(self.dataset) if self.places is None else len(self.places)

    def __getitem__(self, k: int | np.ndarray) -> "np.ndarray | Image.Image | DatasetRows":
        places = np.arange(len(self.dataset)) if self.places is None else self.places
        if isinstance(k, np.ndarray):
            return DatasetRows(self.dataset, self.key, self.value_range, places[k])
        return self._item(int(places[k]))[0]

    @cached_property
    def labels(self) -> list[int] | None:
        """The labels of all items, None without labels."""
        targets = getattr(self.dataset, "targets", None)
        if targets is None or len(targets) != len(self.dataset):
            targets = [self._item(k)[1] for k in range(len(self.dataset))]
        found = [*map(_number, targets)]
        if all(label is None for label in found):
            return None
        if None in found:
            at = found.index(None)
            raise UserError(Exit.DATA, f"{self.key}[{at}]: its label is {targets[at]!r}. Labels must be integers.")
        return found

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.blake2b(digest_size=8)
        for k in range(len(self)):
            image = self[k]
            array = np.ascontiguousarray(image.convert("RGBA") if isinstance(image, Image.Image) else image)
            digest.update(f"{array.shape}".encode() + array.tobytes())
        return digest.hexdigest()

    def _item(self, k: int) -> tuple[np.ndarray | Image.Image, Any]:
        """Return image and label (None without one) of item k."""
        try:
            with self.lock:
                item = self.dataset[k]
        except Exception as error:  # the user's own code may raise anything
            raise UserError(Exit.DATA, f"{self.key}[{k}] raised {type(error).__name__}: {error}") from None
        pair = item if isinstance(item, tuple | list) else (item, None)
        if isinstance(item, dict):
            pair = item.get("image"), item.get("label")
        if len(pair) != 2:
            raise UserError(Exit.DATA, f"{self.key}[{k}] has {len(pair)} values. Let the dataset {ITEM}.")
        try:
            return _picture(pair[0], self.value_range), pair[1]
        except ValueError as error:
            raise UserError(Exit.DATA, f"{self.key}[{k}]: {error}") from None


def _map_style(key: str, leaf: Any) -> Any:
    dataset = build(leaf) if isinstance(leaf, dict) else leaf
    if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__") and len(dataset)):
        raise UserError(
            Exit.DATA,
            f"{key}: {type(dataset).__name__} has no items. Use a map-style dataset, with __len__ and __getitem__.",
        )
    return dataset


def _number(label: Any) -> int | None:
    """Return a label as an int; None if there is none, or if it is no integer."""
    try:
        return int(label) if int(label) == label else None
    except (TypeError, ValueError, RuntimeError):
        return None


def _picture(image: Any, value_range: tuple[float, float]) -> np.ndarray | Image.Image:
    """Return what decoding takes. Raises ValueError with the reason."""
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, np.ndarray):
        array = image
    elif hasattr(image, "detach"):  # a tensor, without importing torch
        array = image.detach().cpu().numpy()
        array = array.transpose(1, 2, 0) if array.ndim == 3 else array
        if array.dtype.kind == "f":
            low, high = value_range
            if not (array.min() >= low and array.max() <= high):
                raise ValueError(
                    f"values from {array.min():g} to {array.max():g} are outside of data.value_range=[{low}, {high}]. "
                    "Set the range that the dataset returns."
                )
            array = np.round((array - low) * (255 / (high - low))).astype(np.uint8)
    else:
        raise ValueError(f"the image is of type {type(image).__name__}. Let the dataset {ITEM}.")
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))):
        raise ValueError(
            f"the image is {array.dtype} {array.shape}, channels last. "
            "Arrays must be uint8 (H, W) or (H, W, C), tensors uint8 or float (H, W) or (C, H, W); C is 1, 3 or 4."
        )
    return array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
