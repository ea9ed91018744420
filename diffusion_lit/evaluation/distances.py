"""Distances between two sets of features, (N, D) and (M, D), with intervals. Both are 0 for equal distributions."""

import torch
from torch import Tensor

from diffusion_lit.evaluation.intervals import Estimate, jackknifed, of_mean, shuffled

GROUPS = 10  # left out one by one, or measured one by one


def frechet_distance(x: Tensor, y: Tensor) -> tuple[Estimate, float]:
    """|m_x - m_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)) (Dowson & Landau 1982; Heusel et al. 2017), and the same less
    its bias.

    The plain number grows as N falls, so it compares sets of equal size; the interval is its jackknife's, over groups
    of both sets. What is left without the bias of order 1/N (compare Chong & Forsyth 2020) can be below 0.
    """
    middle = y.double().mean(0)  # near 0 squares lose no digits
    groups_x, groups_y = _sums(x, middle), _sums(y, middle)
    whole_x, whole_y = (tuple(map(sum, zip(*groups, strict=True))) for groups in (groups_x, groups_y))
    without = [
        _frechet(_moments(*_less(whole_x, x_g)), _moments(*_less(whole_y, y_g)))
        for x_g, y_g in zip(groups_x, groups_y, strict=True)
    ]
    return jackknifed(_frechet(_moments(*whole_x), _moments(*whole_y)), without)


def _sums(x: Tensor, middle: Tensor) -> list[tuple[int, Tensor, Tensor]]:
    """(n, sum of x, sum of x x^T) of each group, from `middle`; double precision is for one group at a time."""
    parts = (x[part].double() - middle for part in shuffled(len(x)).tensor_split(GROUPS))
    return [(len(part), part.sum(0), part.T @ part) for part in parts]


def _less(whole: tuple, group: tuple) -> tuple:
    return tuple(a - b for a, b in zip(whole, group, strict=True))


def _moments(n: int, total: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and unbiased covariance (D, D)."""
    mean = total / n
    return mean, (squares - n * torch.outer(mean, mean)) / (n - 1)


def _frechet(x: tuple[Tensor, Tensor], y: tuple[Tensor, Tensor]) -> float:
    (mean_x, cov_x), (mean_y, cov_y) = x, y
    values, vectors = torch.linalg.eigh(cov_y)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_x @ root).clamp(min=0).sqrt().sum()  # tr (S_x S_y)^(1/2)
    return ((mean_x - mean_y).square().sum() + cov_x.trace() + cov_y.trace() - 2 * cross).item()


def kernel_distance(x: Tensor, y: Tensor) -> Estimate:
    """KID: the unbiased squared maximum mean discrepancy (Gretton et al. 2012, eq. 3) with the kernel (x.y / D + 1)^3
    (Binkowski et al. 2018).

    The mean over disjoint blocks of both sets (Zaremba et al. 2013): these are independent, so Student's interval holds
    also where the two distributions are equal. Without bias at any size, so it compares small sets too, of 4 at least.
    """
    blocks = min(GROUPS, len(x) // 2, len(y) // 2)
    parts = [z.double()[shuffled(len(z), seed)].tensor_split(blocks) for seed, z in enumerate((x, y))]
    return of_mean(torch.tensor([_discrepancy(a, b) for a, b in zip(*parts, strict=True)], dtype=torch.double))


def _discrepancy(x: Tensor, y: Tensor) -> float:
    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(a: Tensor) -> Tensor:
        k = kernel(a, a)
        return (k.sum() - k.trace()) / (len(a) * (len(a) - 1))

    return (within(x) + within(y) - 2 * kernel(x, y).mean()).item()
