"""Conditions: what `y` is, the third input of a network.

A condition knows its null (what the network gets for "nothing given"), drops y to the null in training, and turns
requests into a tensor. All of y has the batch first. The interface was tried on paper with:

- a scalar: y (B, 2) float, the value and 1; null zeros. A request is a number.
- several labels of an image: y (B, K) float, 1 where one applies, and one more column that is 1; null zeros. A request
  is a set of names. Dropping single labels is another `drop` of the same signature.
- a caption: y (B, L) int64, token ids; null the ids of the empty text. A request is a text, `to_tensor` has the
  tokenizer. With embeddings y is (B, L, D).
- an image: y (B, C + 1, H, W) float, the image and ones; null zeros. A request is a path.

So a null has the form of the y beside it (guidance puts both in one batch), a draw is one number per image whatever the
shape of y, and requests need nothing but a list.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Condition(Protocol):
    has_null: bool  # False: there is nothing to drop and nothing to guide by

    def null(self, y: Tensor) -> Tensor:
        """Return the null in the form of y."""

    def drop(self, y: Tensor, draw: Tensor, probability: float) -> Tensor:
        """Return y (B, ...) with the null where the uniform numbers `draw` (B,) are below the probability."""

    def to_tensor(self, requests: Sequence) -> Tensor:
        """Return y (N, ...) of N requests. Raises ValueError for one that the network does not take."""


class ClassCondition:
    """Class labels y (B,) int64 with the null label `num_classes`, or blends (B, num_classes) float32 with zeros.

    Args:
        num_classes: 0: the network ignores y.
        blends_fault: why blends are not taken; None: they are.
    """

    def __init__(self, num_classes: int, blends_fault: str | None = None):
        self.num_classes, self.blends_fault = num_classes, blends_fault
        self.has_null = num_classes > 0

    def null(self, y: Tensor) -> Tensor:
        return torch.zeros_like(y) if y.is_floating_point() else torch.full_like(y, self.num_classes)

    def drop(self, y: Tensor, draw: Tensor, probability: float) -> Tensor:
        if not (probability and self.has_null):
            return y
        dropped = (draw < probability).view(-1, *[1] * (y.ndim - 1))
        return torch.where(dropped, self.null(y), y)

    def to_tensor(self, requests: Sequence[int] | Sequence[tuple[float, ...]]) -> Tensor:
        y = torch.as_tensor(requests)
        if y.is_floating_point() or y.ndim > 1:
            if self.blends_fault:
                raise ValueError(self.blends_fault)
            if not y.is_floating_point() or y.shape[1:] != (self.num_classes,):
                raise ValueError(f"a blend has a share, a float, for each of the {self.num_classes} classes")
        return y
