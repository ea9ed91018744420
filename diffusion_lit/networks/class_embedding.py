"""A class embedding whose rows can be blended."""

import torch
from torch import Tensor, nn


class ClassEmbedding(nn.Embedding):
    """An embedding with a row for each class and, last, one for the null label.

    Takes labels y (B,) int64 or blends (B, num_classes) float32; returns (B,
    width). A blend is the weighted sum of its rows. What its shares lack to 1 goes
    to the null label, so that (1, 0, ...) is exactly class 0 and zeros are exactly
    the null label.
    """

    def forward(self, y: Tensor) -> Tensor:
        """Return the embeddings (B, width) of labels or blends."""
        if not y.is_floating_point():
            return super().forward(y)
        return torch.cat([y, 1 - y.sum(1, keepdim=True)], 1).to(self.weight) @ self.weight
