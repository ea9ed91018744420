"""Precision, recall, density and coverage of two sets of features."""

from collections.abc import Iterator

import torch
from torch import Tensor

from diffusion_lit.evaluation.intervals import Estimate, fixed_permutation, measure_mean, proportion_interval

PRECISION_K, DENSITY_K = 3, 5  # of the two papers
DISTANCES = 20_000_000  # at a time, whatever the number of images


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
    center = y.mean(0)  # far from 0 squared distances would lose their digits
    x, y = x - center, y - center
    (radius_x,), (radius_y, density_radius) = neighbor_radii(x, PRECISION_K), neighbor_radii(y, PRECISION_K, DENSITY_K)
    is_precise, num_balls = (torch.zeros(n, dtype=t, device=x.device) for t in (torch.bool, torch.int64))
    num_recalled, num_covered = torch.zeros(2, dtype=torch.int64, device=x.device)
    for rows, distance in _squared_distances(y, x):
        is_precise |= (distance <= radius_y[rows, None]).any(0)
        num_recalled += (distance <= radius_x).any(1).sum()
        is_inside = distance <= density_radius[rows, None]
        num_balls += is_inside.sum(0)
        num_covered += is_inside.any(1).sum()
    return {
        "precision": proportion_interval(is_precise.cpu()),
        "recall": num_recalled.item() / n,
        "density": measure_mean(num_balls.double().cpu() / DENSITY_K).interval(),
        "coverage": num_covered.item() / n,
    }


def neighbor_radii(x: Tensor, *neighbors: int) -> list[Tensor]:
    """Return the squared distance of each point (N, D) to its k-th neighbor for each k, or to its last; each (N,)."""
    last = min(max(neighbors), len(x) - 1)
    nearest = [squares.topk(last + 1, 1, largest=False).values for _, squares in _squared_distances(x, x)]
    distances = torch.cat(nearest).sort(1).values  # the first is the point itself
    return [distances[:, min(k, last)] for k in neighbors]


def _squared_distances(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield rows of x and their squared distances to all of y, |x|^2 + |y|^2 - 2 x.y."""
    of_x, of_y = x.square().sum(1), y.square().sum(1)
    step = max(1, DISTANCES // len(y))
    for start in range(0, len(x), step):
        rows = slice(start, start + step)
        yield rows, torch.addmm(of_y, x[rows], y.T, alpha=-2).add_(of_x[rows, None])
