"""Quality and variety apart: which images lie where the other set is, by balls around nearest neighbours."""

import torch
from torch import Tensor

from diffusion_lit.evaluation.intervals import Estimate, of_mean, of_share, shuffled

PRECISION_K, DENSITY_K = 3, 5  # of the two papers
ROWS = 1000  # of a distance matrix at a time


def precision_recall(generated: Tensor, real: Tensor) -> dict[str, Estimate]:
    """Of features (N, D) and (M, D), of which equally many are taken:

    precision, recall: the share of generated ones inside a ball of the real ones, and the other way round; a ball
        reaches to the 3rd neighbour in its own set (Kynkäänniemi et al. 2019).
    density, coverage: how many real balls a generated one is in, over 5, and the share of real balls that hold a
        generated one; they reach to the 5th neighbour (Naeem et al. 2020). Density is 1 for equal distributions.

    Each interval is over the points that are counted, for balls as they are.
    """
    n = min(len(generated), len(real))
    x, y = (z[shuffled(len(z))[:n]].double() for z in (generated, real))
    radius_x, radius_y = radii(x, PRECISION_K), radii(y, PRECISION_K)
    wide = radii(y, DENSITY_K)
    precise = torch.zeros(n, dtype=torch.bool)
    inside, recalled, covered = torch.zeros(n, dtype=torch.double), [], []
    for start in range(0, n, ROWS):
        rows = slice(start, start + ROWS)
        distance = torch.cdist(y[rows], x)
        precise |= (distance <= radius_y[rows, None]).any(0)
        recalled.append((distance <= radius_x).any(1))
        inside += (distance <= wide[rows, None]).sum(0)
        covered.append((distance <= wide[rows, None]).any(1))
    return {
        "precision": of_share(precise),
        "recall": of_share(torch.cat(recalled)),
        "density": of_mean(inside / DENSITY_K),
        "coverage": of_share(torch.cat(covered)),
    }


def radii(x: Tensor, k: int) -> Tensor:
    """Distance of each point (N, D) to its k-th neighbour, (N,); all others where there are fewer."""
    k = min(k, len(x) - 1)
    return torch.cat([torch.cdist(rows, x).kthvalue(k + 1, 1).values for rows in x.split(ROWS)])  # itself is the first
