"""Precision, recall, density and coverage of two sets of features."""

import torch
from torch import Tensor

from diffusion_lit.evaluation.intervals import Estimate, fixed_permutation, mean_interval, proportion_interval

PRECISION_K, DENSITY_K = 3, 5  # of the two papers
DISTANCE_ROWS = 1000  # rows of a distance matrix at a time


def precision_recall(generated: Tensor, real: Tensor) -> dict[str, Estimate]:
    """Return precision, recall, density and coverage, of equally many of both sets.

    Each interval is over the points that are counted; the balls are taken as given.

    - precision: share of generated points inside a ball around a real one, with the distance to
      its 3rd neighbor as radius; recall: the other way round (Kynkäänniemi et al. 2019).
    - density: number of real balls that a generated point is in, over k = 5; coverage: share of
      real balls with a generated point inside; balls reach to the 5th neighbor (Naeem et al.
      2020). Density is 1 for equal distributions.

    Args:
        generated: features (N, D).
        real: features (M, D).
    """
    n = min(len(generated), len(real))
    x, y = (z[fixed_permutation(len(z))[:n]].double() for z in (generated, real))
    radius_x, radius_y = neighbor_radii(x, PRECISION_K), neighbor_radii(y, PRECISION_K)
    density_radius = neighbor_radii(y, DENSITY_K)
    is_precise = torch.zeros(n, dtype=torch.bool)
    num_balls, is_recalled, is_covered = torch.zeros(n, dtype=torch.double), [], []
    for start in range(0, n, DISTANCE_ROWS):
        rows = slice(start, start + DISTANCE_ROWS)
        distance = torch.cdist(y[rows], x)
        is_precise |= (distance <= radius_y[rows, None]).any(0)
        is_recalled.append((distance <= radius_x).any(1))
        is_inside = distance <= density_radius[rows, None]
        num_balls += is_inside.sum(0)
        is_covered.append(is_inside.any(1))
    return {
        "precision": proportion_interval(is_precise),
        "recall": proportion_interval(torch.cat(is_recalled)),
        "density": mean_interval(num_balls / DENSITY_K),
        "coverage": proportion_interval(torch.cat(is_covered)),
    }


def neighbor_radii(x: Tensor, k: int) -> Tensor:
    """Return the distance of each point (N, D) to its k-th neighbor, or to its last if there are fewer, (N,)."""
    k = min(k, len(x) - 1)
    return torch.cat(
        [torch.cdist(rows, x).kthvalue(k + 1, 1).values for rows in x.split(DISTANCE_ROWS)]
    )  # first is itself
