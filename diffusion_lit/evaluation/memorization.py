"""Memorization: which generated images are copies of training images, by their nearest neighbors."""

from typing import NamedTuple

import torch
from torch import Tensor

NUM_NEIGHBORS = 50
# Carlini et al. (2023) take 1/2, below which are 3 to 19 % of validation digits.
MAX_RATIO = 1 / 3
FALSE_ALARMS = 0.01  # share of validation images up to the threshold
SEARCH_ROWS = 500


class Neighbors(NamedTuple):
    """The k nearest distinct training images of each image, the nearest first.

    Attributes:
        distance: (N, k).
        index: of the training images, (N, k).
    """

    distance: Tensor
    index: Tensor

    @property
    def ratio(self) -> Tensor:
        """Return the nearest distance over the median of all k, (N,): 0 for an exact copy, at most 1.

        It is relative to the density around the image, so one rule serves all
        features and data (Carlini et al. 2023, eq. 1, with the mean). The median
        does not change when up to half of the neighbors are variants of one
        training image.
        """
        return self.distance[:, 0] / self.distance.median(1).values.clamp(min=1e-12)


class NeighborSearch:
    """Finds Euclidean neighbors among the distinct ones of training vectors (M, D).

    Matrix products find them, and differences measure them again, so that an exact copy
    is at distance 0.
    """

    def __init__(self, training: Tensor):
        self.distinct = _find_distinct(training)
        self.training = training[self.distinct].float()
        self.squares = self.training.square().sum(1)

    def __call__(self, images: Tensor, k: int = NUM_NEIGHBORS) -> Neighbors:
        """Return the neighbors of vectors (N, D), at most k each."""
        k = min(k, len(self.training))
        distances, indices = [], []
        for rows in images.float().split(SEARCH_ROWS):
            index = (self.squares - 2 * rows @ self.training.T).topk(k, 1, largest=False).indices
            exact = torch.stack([(self.training[index[:, j]] - rows).square().sum(1).sqrt() for j in range(k)], 1)
            exact, order = exact.sort(dim=1, stable=True)
            distances.append(exact)
            indices.append(self.distinct[index.gather(1, order)])
        return Neighbors(torch.cat(distances).cpu(), torch.cat(indices).cpu())


def _find_distinct(vectors: Tensor) -> Tensor:
    """Return the index of the first of each group of equal vectors (M, D), in order."""
    _, group = vectors.unique(dim=0, return_inverse=True)
    first = torch.full((int(group.max()) + 1,), len(vectors), device=group.device)
    return first.scatter_reduce(0, group, torch.arange(len(vectors), device=group.device), "amin").sort().values


def choose_threshold(validation: Neighbors | None) -> float:
    """Return the ratio up to which an image is a copy.

    1 % of validation images are not above it, and it is at most 1/3. Validation
    images are new, so they show how near a new image comes to training images by
    chance. Where 1 % or more of them equal training images it is 0: exact copies
    alone are copies then.
    """
    if validation is None:
        return MAX_RATIO
    return min(MAX_RATIO, torch.quantile(validation.ratio, FALSE_ALARMS).item())
