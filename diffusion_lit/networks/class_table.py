"""A table of classes whose rows can be mixed."""

import torch
from torch import Tensor, nn


class ClassTable(nn.Embedding):
    """Rows of classes and, the last, of the null label: y (B,) int64 or blends (B, classes) float32 -> (B, width).

    A blend is the sum of its shares of rows. What they lack to 1 is the null label's, so that (1, 0, ...) is exactly
    the class and zeros are exactly the null label.
    """

    def forward(self, y: Tensor) -> Tensor:
        if not y.is_floating_point():
            return super().forward(y)
        return torch.cat([y, 1 - y.sum(1, keepdim=True)], 1).to(self.weight) @ self.weight
