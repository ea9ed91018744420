"""Precision, recall, density and coverage of two sets of features."""

import torch
from torch import Tensor

from diffusion_lit.evaluation.intervals import Estimate, fixed_permutation, measure_mean, proportion_interval

PRECISION_K, DENSITY_K = 3, 5  # of the two papers
DISTANCE_ROWS = 1000  # rows of a distance matrix at a time


def precision_recall(generated: Tensor, real: Tensor) -> dict[str, Estimate | float]:
    """Return precision, recall, density and coverage, of equally many of both sets.

    - precision: share of generated points inside a ball around a real one, with the distance to
      its 3rd neighbor as radius; recall: the other way round (Kynkäänniemi et al. 2019).
    - density: number of real balls that a generated point is in, over k = 5; coverage: share of
      real balls with a generated point inside; balls reach to the 5th neighbor (Naeem et al.
      2020). Density is 1 for equal distributions.

    Precision and density have intervals, because their balls are of the real
    images. The balls of recall and the points of coverage change with the
    generated images: intervals over real images cover too rarely, so there are
    none.

    Args:
        generated: features (N, D).
        real: features (M, D), of the same type.
    """
    n = min(len(generated), len(real))
    x, y = (z[fixed_permutation(len(z))[:n]] for z in (generated, real))
    (radius_x,), (radius_y, density_radius) = neighbor_radii(x, PRECISION_K), neighbor_radii(y, PRECISION_K, DENSITY_K)
    is_precise, num_balls = torch.zeros(n, dtype=torch.bool), torch.zeros(n, dtype=torch.double)
    num_recalled = num_covered = 0
    for start in range(0, n, DISTANCE_ROWS):
        rows = slice(start, start + DISTANCE_ROWS)
        distance = torch.cdist(y[rows], x)
        is_precise |= (distance <= radius_y[rows, None]).any(0).cpu()
        num_recalled += (distance <= radius_x).any(1).sum().item()
        is_inside = distance <= density_radius[rows, None]
        num_balls += is_inside.sum(0).cpu()
        num_covered += is_inside.any(1).sum().item()
    return {
        "precision": proportion_interval(is_precise),
        "recall": num_recalled / n,
        "density": measure_mean(num_balls / DENSITY_K).interval(),
        "coverage": num_covered / n,
    }


def neighbor_radii(x: Tensor, *neighbors: int) -> list[Tensor]:
    """Return the distance of each point (N, D) to its k-th neighbor for each k, or to its last one; each (N,)."""
    last = min(max(neighbors), len(x) - 1)
    nearest = [torch.cdist(rows, x).topk(last + 1, 1, largest=False).values for rows in x.split(DISTANCE_ROWS)]
    distances = torch.cat(nearest)  # the first is the point itself
    return [distances[:, min(k, last)] for k in neighbors]
