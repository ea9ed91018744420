"""Images of any map-style `torch.utils.data.Dataset`, which is read once."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image

from diffusion_lit.config.targets import build
from diffusion_lit.data.deep_images import is_deep, require_finite
from diffusion_lit.data.sources.data_source import Split
from diffusion_lit.system.console import escape_controls
from diffusion_lit.system.errors import DataError

ITEM = "return (image, label), the image alone, or a dict with image and label"


class DatasetSource:
    """The items of a dataset: `(image, label)`, an image, or a dict with the keys image and label.

    An image is a PIL image, an array (H, W) or (H, W, C), or a tensor (H, W) or
    (C, H, W), uint8 or in `data.value_range`. Items are decoded once, so random
    augmentation belongs in `data.transforms`. Where the dataset has `targets`
    (labels, in order) or `classes` (their names), as those of torchvision do,
    they are used.

    Args:
        dataset: the dataset, or its class by `_target_` with the arguments.
        val_dataset: the validation split; None: `data.val_fraction` of the images are
            taken.
        labels: "auto", or "none" to ignore labels.
    """

    def __init__(self, dataset: Any, val_dataset: Any = None, labels: str = "auto"):
        self.labels = labels
        self.images = {"train": DatasetImages(_make_dataset("data.dataset", dataset), "data.dataset")}
        if val_dataset is not None:
            dataset = _make_dataset("data.val_dataset", val_dataset)
            self.images["val"] = DatasetImages(dataset, "data.val_dataset")

    @cached_property
    def class_names(self) -> list[str]:
        """Return the class names; empty without labels."""
        if self.labels == "none" or self.images["train"].labels is None:
            return []
        names = getattr(self.images["train"].dataset, "classes", self._values)
        return [escape_controls(str(name)) for name in names]

    @cached_property
    def _values(self) -> list[int]:
        """Return the label of each class, in order."""
        train = self.images["train"]
        return list(range(len(train.dataset.classes))) if hasattr(train.dataset, "classes") else sorted({*train.labels})

    def splits(self) -> dict[str, Split]:
        """Return "train", and "val" with a `val_dataset`."""
        return {name: Split(images, self._number_labels(images)) for name, images in self.images.items()}

    def _number_labels(self, images: "DatasetImages") -> np.ndarray:
        if not self.class_names:
            return np.zeros(len(images), np.int64)
        if images.labels is None or not set(images.labels) <= set(self._values):
            raise DataError(f"{images.key}: every label must be one of {self._values}, as in training.")
        return np.searchsorted(self._values, images.labels).astype(np.int64)


@dataclass(frozen=True)
class DatasetImages:
    """The images of a dataset.

    Args:
        dataset: map-style.
        key: what messages call it.
        lock: datasets are made for processes, not for threads.
    """

    dataset: Any
    key: str
    lock: Lock = Lock()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, k: int) -> np.ndarray | Image.Image:
        return self._read_item(k)[0]

    @cached_property
    def labels(self) -> list[int] | None:
        """Return the labels of all items, None without labels."""
        targets = getattr(self.dataset, "targets", None)
        if targets is None or len(targets) != len(self.dataset):
            targets = [self._read_item(k)[1] for k in range(len(self.dataset))]
        labels = [*map(_to_int, targets)]
        if all(label is None for label in labels):
            return None
        if None in labels:
            k = labels.index(None)
            raise DataError(f"{self.key}[{k}]: its label is {targets[k]!r}. Labels must be integers.")
        return labels

    @cached_property
    def fingerprint(self) -> str:
        """Return a digest of all pixels."""
        digest = hashlib.blake2b(digest_size=8)
        for k in range(len(self)):
            image = self[k]
            is_plain = isinstance(image, Image.Image) and not is_deep(image)
            array = np.asarray(image.convert("RGBA") if is_plain else image)
            digest.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
        return digest.hexdigest()

    def _read_item(self, k: int) -> tuple[np.ndarray | Image.Image, Any]:
        """Return image and label (None without one) of item k."""
        try:
            with self.lock:
                item = self.dataset[k]
        except Exception as error:  # the user's own code may raise anything
            raise DataError(f"{self.key}[{k}] raised {type(error).__name__}: {error}") from None
        pair = item if isinstance(item, tuple | list) else (item, None)
        if isinstance(item, dict):
            pair = item.get("image"), item.get("label")
        if len(pair) != 2:
            raise DataError(f"{self.key}[{k}] has {len(pair)} values. Let the dataset {ITEM}.")
        try:
            return _check_image(pair[0]), pair[1]
        except ValueError as error:
            raise DataError(f"{self.key}[{k}]: {error}") from None


def _make_dataset(key: str, dataset: Any) -> Any:
    dataset = build(dataset) if isinstance(dataset, dict) else dataset
    if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__") and len(dataset)):
        name = type(dataset).__name__
        raise DataError(f"{key}: {name} has no items. Use a map-style dataset, with __len__ and __getitem__.")
    return dataset


def _to_int(label: Any) -> int | None:
    """Return a label as an int; None if there is none, or if it is no integer."""
    try:
        return int(label) if int(label) == label else None
    except (TypeError, ValueError, RuntimeError):
        return None


def _check_image(image: Any) -> np.ndarray | Image.Image:
    """Return the image as decoding expects it. Raise ValueError with the reason if it has another form."""
    if isinstance(image, Image.Image):
        return image
    if hasattr(image, "detach"):  # a tensor, without importing torch
        image = image.detach().cpu().numpy()
        image = image.transpose(1, 2, 0) if image.ndim == 3 else image
    elif not isinstance(image, np.ndarray):
        raise ValueError(f"the image is of type {type(image).__name__}. Let the dataset {ITEM}.")
    if image.dtype.kind not in "buif" or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (1, 3, 4))):
        raise ValueError(
            f"the image is {image.dtype} {image.shape}, channels last. "
            "Arrays must be numbers (H, W) or (H, W, C), tensors (H, W) or (C, H, W); C is 1, 3 or 4."
        )
    require_finite(image)
    return image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image
