"""Fréchet and kernel distance of two sets of features, (N, D) and (M, D), with intervals."""

import torch
from torch import Tensor

from diffusion_lit.evaluation.intervals import Estimate, fixed_permutation, jackknife, mean_interval

GROUPS = 10  # of the jackknife, or blocks of the kernel distance


def frechet_distance(x: Tensor, y: Tensor) -> tuple[Estimate, float]:
    """Return the Fréchet distance with its interval, and the distance less its bias.

    |m_x - m_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)) (Dowson & Landau 1982; Heusel et al. 2017).
    It grows as N falls, so it compares sets of equal size. The interval is that of the jackknife
    over groups of both sets. Without the bias of order 1/N (compare Chong & Forsyth 2020) it can
    be below 0.
    """
    center = y.double().mean(0)  # squares of numbers near 0 lose no digits
    groups_x, groups_y = _group_sums(x, center), _group_sums(y, center)
    total_x, total_y = (tuple(map(sum, zip(*groups, strict=True))) for groups in (groups_x, groups_y))
    left_out = [
        _frechet(_moments(*_subtract(total_x, group_x)), _moments(*_subtract(total_y, group_y)))
        for group_x, group_y in zip(groups_x, groups_y, strict=True)
    ]
    return jackknife(_frechet(_moments(*total_x), _moments(*total_y)), left_out)


def _group_sums(x: Tensor, center: Tensor) -> list[tuple[int, Tensor, Tensor]]:
    """Return (n, sum of x, sum of x x^T) of each group, relative to `center`."""
    parts = (x[part].double() - center for part in fixed_permutation(len(x)).tensor_split(GROUPS))
    return [(len(part), part.sum(0), part.T @ part) for part in parts]


def _subtract(total: tuple, group: tuple) -> tuple:
    return tuple(a - b for a, b in zip(total, group, strict=True))


def _moments(n: int, total: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean (D,) and unbiased covariance (D, D)."""
    mean = total / n
    return mean, (squares - n * torch.outer(mean, mean)) / (n - 1)


def _frechet(x: tuple[Tensor, Tensor], y: tuple[Tensor, Tensor]) -> float:
    (mean_x, cov_x), (mean_y, cov_y) = x, y
    values, vectors = torch.linalg.eigh(cov_y)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_x @ root).clamp(min=0).sqrt().sum()  # tr (S_x S_y)^(1/2)
    return ((mean_x - mean_y).square().sum() + cov_x.trace() + cov_y.trace() - 2 * cross).item()


def kernel_distance(x: Tensor, y: Tensor) -> Estimate:
    """Return KID, with the kernel (x.y / D + 1)^3 (Binkowski et al. 2018).

    The unbiased squared maximum mean discrepancy (Gretton et al. 2012, eq. 3), as the mean over
    disjoint blocks of both sets (Zaremba et al. 2013). The blocks are independent, so Student's
    interval holds even for equal distributions. It has no bias at any size, and compares small
    sets too, of at least 4.
    """
    blocks = min(GROUPS, len(x) // 2, len(y) // 2)
    parts = [z.double()[fixed_permutation(len(z), seed)].tensor_split(blocks) for seed, z in enumerate((x, y))]
    return mean_interval(torch.tensor([_discrepancy(a, b) for a, b in zip(*parts, strict=True)], dtype=torch.double))


def _discrepancy(x: Tensor, y: Tensor) -> float:
    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def mean_off_diagonal(a: Tensor) -> Tensor:
        k = kernel(a, a)
        return (k.sum() - k.trace()) / (len(a) * (len(a) - 1))

    return (mean_off_diagonal(x) + mean_off_diagonal(y) - 2 * kernel(x, y).mean()).item()
