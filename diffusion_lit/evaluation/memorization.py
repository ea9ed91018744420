"""Which generated images are training images: nearest neighbours, and how much nearer than the next ones they are."""

from typing import NamedTuple

import torch
from torch import Tensor

NEIGHBOURS, ALPHA = 50, 1 / 3  # of Carlini et al. (2023), who take 1/2, below which are 3 to 19 % of held-out digits
ROWS = 500


class Neighbours(NamedTuple):
    """The nearest training images of each image, the nearest first: distances and places, (N, k)."""

    distance: Tensor
    index: Tensor

    @property
    def ratio(self) -> Tensor:
        """(N,): distance to the nearest over the mean distance to the k nearest; 0 for an exact copy, 1 at most."""
        return self.distance[:, 0] / self.distance.mean(1).clamp(min=1e-12)

    @property
    def copied(self) -> Tensor:
        """(N,) boolean: three times as near to one training image as to those around it (Carlini et al. 2023, eq. 1).

        Measured against the density around it, so one rule serves all features and data; how often it errs is known
        from held-out images.
        """
        return self.ratio < ALPHA


def nearest(images: Tensor, training: Tensor) -> Neighbours:
    """Euclidean neighbours of vectors (N, D) among (M, D), at most 50 each.

    Found by matrix products and measured again by differences: of an exact copy the distance is exactly 0.
    """
    k = min(NEIGHBOURS, len(training))
    squares = training.float().square().sum(1)
    distances, places = [], []
    for rows in images.float().split(ROWS):
        index = (squares - 2 * rows @ training.float().T).topk(k, 1, largest=False).indices
        exact = torch.stack([(training[index[:, j]].float() - rows).square().sum(1).sqrt() for j in range(k)], 1)
        exact, order = exact.sort(dim=1, stable=True)
        distances.append(exact)
        places.append(index.gather(1, order))
    return Neighbours(torch.cat(distances), torch.cat(places))
