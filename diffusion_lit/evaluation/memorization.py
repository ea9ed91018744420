"""Memorization: which generated images are copies of training images, by their nearest neighbors."""

from typing import NamedTuple

import torch
from torch import Tensor

# Of Carlini et al. (2023), who take a threshold of 1/2, below which are 3 to 19 % of validation digits.
NUM_NEIGHBORS, THRESHOLD = 50, 1 / 3
SEARCH_ROWS = 500


class Neighbors(NamedTuple):
    """The k nearest training images of each image, the nearest first.

    Attributes:
        distance: (N, k).
        index: of the training images, (N, k).
    """

    distance: Tensor
    index: Tensor

    @property
    def ratio(self) -> Tensor:
        """Return the nearest distance over the mean of all k, (N,): 0 for an exact copy, at most 1."""
        return self.distance[:, 0] / self.distance.mean(1).clamp(min=1e-12)

    @property
    def is_copy(self) -> Tensor:
        """Return which images are copies, (N,): nearer than a third of the mean (Carlini et al. 2023, eq. 1).

        The distance is relative to the density around it, so one rule serves all features and
        data. Validation images show how often it errs.
        """
        return self.ratio < THRESHOLD


def find_neighbors(images: Tensor, training: Tensor) -> Neighbors:
    """Return the Euclidean neighbors of vectors (N, D) among (M, D), at most 50 each.

    Matrix products find them, differences measure them again: an exact copy is at distance 0.
    """
    k = min(NUM_NEIGHBORS, len(training))
    squares = training.float().square().sum(1)
    distances, indices = [], []
    for rows in images.float().split(SEARCH_ROWS):
        index = (squares - 2 * rows @ training.float().T).topk(k, 1, largest=False).indices
        exact = torch.stack([(training[index[:, j]].float() - rows).square().sum(1).sqrt() for j in range(k)], 1)
        exact, order = exact.sort(dim=1, stable=True)
        distances.append(exact)
        indices.append(index.gather(1, order))
    return Neighbors(torch.cat(distances), torch.cat(indices))
