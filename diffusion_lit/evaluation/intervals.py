"""Estimates with 95 % confidence intervals."""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Estimate(NamedTuple):
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float

    def entries(self, name: str) -> dict[str, float]:
        """Return the three entries of result.json: `name`, `name`_low, `name`_high."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


def mean_interval(numbers: Tensor) -> Estimate:
    """Return the mean of N >= 2 independent numbers, with mean ± t(0.975, N - 1) s / sqrt(N) (Student 1908)."""
    mean, n = numbers.double().mean().item(), len(numbers)
    half = student_quantile(n - 1) * numbers.double().std().item() / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half)


def proportion_interval(hits: Tensor) -> Estimate:
    """Return the share of True among N independent booleans, with the score interval (Wilson 1927)."""
    n, share, z2 = len(hits), hits.double().mean().item(), 1.959964**2
    center = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    low, high = max(0.0, center - half), min(1.0, center + half)
    return Estimate(share, min(low, share), max(high, share))  # rounding leaves 1e-17 of a 0


def jackknife(estimate: float, left_out: list[float]) -> tuple[Estimate, float]:
    """Return the interval of an estimate, and the estimate less its bias of order 1/n.

    Quenouille 1956; Tukey 1958.

    Args:
        estimate: from all data.
        left_out: estimates from the data without one of g groups each.
    """
    values, g = torch.tensor(left_out, dtype=torch.double), len(left_out)
    half = student_quantile(g - 1) * math.sqrt((g - 1) ** 2 / g) * values.std().item()
    return Estimate(estimate, estimate - half, estimate + half), g * estimate - (g - 1) * values.mean().item()


def student_quantile(freedom: int) -> float:
    """Return t(0.975) of Student's distribution with so many degrees of freedom."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.975))


def fixed_permutation(n: int, seed: int = 0) -> Tensor:
    """Return 0 .. n - 1 in a fixed random order, to split sets that are sorted, by class for example."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))
