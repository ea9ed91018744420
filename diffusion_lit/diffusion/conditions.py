"""Conditions: the third input `y` of a network.

A condition knows its null (what the network gets in place of a condition), drops y
to the null in training, and turns requests into a tensor. The first axis of y is
the batch. A null has the form of y, because guidance puts both in one batch.
Dropping takes one random number per image.

Classes are implemented here, prompts in `diffusion_lit.text`. The interface would also fit:

- a scalar: y (B, 2) float, the value and 1; null zeros. A request is a number.
- several labels of an image: y (B, K) float, 1 where one applies, and one more column that is 1;
  null zeros. A request is a set of names. Dropping single labels is another `drop`
  of the same signature.
- an image: y (B, C + 1, H, W) float, the image and ones; null zeros. A request is a path.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor


class Condition(Protocol):
    """The interface that training, guidance and sampling use.

    Attributes:
        has_null: False if there is nothing to drop and nothing to guide by.
    """

    has_null: bool

    def null(self, y: Tensor) -> Tensor:
        """Return the null in the form of y (B, ...)."""

    def drop(self, y: Tensor, uniform: Tensor, probability: float) -> Tensor:
        """Return y (B, ...) with the null where `uniform` (B,) in [0, 1) is below the probability."""

    def read_batch(self, batch: Mapping[str, Any]) -> Tensor:
        """Return y (B, ...) of a batch of the data module, on the device of its images."""

    def to_tensor(self, requests: Sequence) -> Tensor:
        """Return y (N, ...) of N requests.

        Raise ValueError for one that the network does not take.
        """


class ClassCondition:
    """Class labels, or blends of classes.

    Labels are y (B,) int64 with the null label `num_classes`; blends are y (B,
    num_classes) float32 with zeros as null.

    Args:
        num_classes: number of classes; with 0 the network ignores y.
        blends_error: message of the ValueError for blends; None if the network
            takes them.
    """

    def __init__(self, num_classes: int, blends_error: str | None = None):
        self.num_classes, self.blends_error = num_classes, blends_error
        self.has_null = num_classes > 0

    def null(self, y: Tensor) -> Tensor:
        """Return null labels or null blends of the shape of y."""
        return torch.zeros_like(y) if y.is_floating_point() else torch.full_like(y, self.num_classes)

    def drop(self, y: Tensor, uniform: Tensor, probability: float) -> Tensor:
        """Replace y by the null where `uniform` (B,) is below the probability (Ho & Salimans 2022, algorithm 1)."""
        if not (probability and self.has_null):
            return y
        is_dropped = (uniform < probability).view(-1, *[1] * (y.ndim - 1))
        return torch.where(is_dropped, self.null(y), y)

    def read_batch(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the labels `y` of a batch, int64 (B,); zeros where it has none."""
        y, images = batch.get("y"), batch["image"]
        return torch.zeros(len(images), dtype=torch.int64, device=images.device) if y is None else y

    def to_tensor(self, requests: Sequence[int] | Sequence[tuple[float, ...]]) -> Tensor:
        """Return y of labels, or of blends with a share for each class.

        Raises:
            ValueError: if the requests are blends that the network does not take,
                or do not have one float per class.
        """
        y = torch.as_tensor(requests)
        if y.is_floating_point() or y.ndim > 1:
            if self.blends_error:
                raise ValueError(self.blends_error)
            if not y.is_floating_point() or y.shape[1:] != (self.num_classes,):
                raise ValueError(f"a blend must have a share, a float, for each of the {self.num_classes} classes")
        return y
