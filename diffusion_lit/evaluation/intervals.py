"""Estimates with 95 % intervals."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

LEVEL = 0.975  # two-sided 95 %


class Estimate(NamedTuple):
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float


def of_mean(numbers: Tensor) -> Estimate:
    """The mean of independent numbers (N,), N >= 2: mean ± t(0.975, N - 1) s / sqrt(N) (Student 1908)."""
    mean, n = numbers.double().mean().item(), len(numbers)
    half = student(n - 1) * numbers.double().std().item() / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half)


def of_share(hits: Tensor) -> Estimate:
    """The share of true among independent booleans (N,): the score interval (Wilson 1927), which holds at 0 and 1."""
    n, share, z2 = len(hits), hits.double().mean().item(), 1.959964**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return Estimate(share, max(0.0, centre - half), min(1.0, centre + half))


def jackknifed(whole: float, without: list[float]) -> tuple[Estimate, float]:
    """An estimate from all of the data and from the data without each of g groups: it with its interval, and what is
    left of it without the bias of order 1/n (Quenouille 1956; Tukey 1958).
    """
    left_out, g = torch.tensor(without, dtype=torch.double), len(without)
    half = student(g - 1) * math.sqrt((g - 1) ** 2 / g) * left_out.std().item()
    return Estimate(whole, whole - half, whole + half), g * whole - (g - 1) * left_out.mean().item()


def student(freedom: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, LEVEL))


def shuffled(n: int, seed: int = 0) -> Tensor:
    """The numbers below n in a fixed random order: sets that are sorted, by class say, are taken in parts by it."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))
