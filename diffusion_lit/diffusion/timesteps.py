"""Timestep distributions: how often training draws each noise level.

A distribution maps uniform numbers in [0, 1) to fractions of the way from clean
image (0) to noise (1); a process maps these to its times. To add one, write a
function and add it to `TIMESTEP_DISTRIBUTIONS`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

BELOW_1 = 1 - 2**-24  # the largest float32 below 1


def uniform_fractions(u: Tensor, mean: float, std: float) -> Tensor:
    """Return u itself: all fractions are equally likely. `mean` and `std` are not used."""
    return u


def logit_normal_fractions(u: Tensor, mean: float, std: float) -> Tensor:
    """Return fractions s such that log(s / (1 - s)) is normal (Esser et al. 2024, eq. 19)."""
    return torch.sigmoid(mean + std * torch.special.ndtri(u)).clamp(max=BELOW_1)


class TimestepDistribution(NamedTuple):
    """A map of uniform numbers to fractions, and the form of the uniform numbers.

    Attributes:
        fractions: (u (B,) in [0, 1), mean, std) -> fractions (B,) in [0, 1).
        is_stratified: split [0, 1) into as many equal strata as the global batch
            has images, and draw one u from each.
    """

    fractions: Callable[[Tensor, float, float], Tensor]
    is_stratified: bool = False


TIMESTEP_DISTRIBUTIONS = {
    "uniform": TimestepDistribution(uniform_fractions),
    "stratified": TimestepDistribution(uniform_fractions, is_stratified=True),
    "logit_normal": TimestepDistribution(logit_normal_fractions),
    "stratified_logit_normal": TimestepDistribution(logit_normal_fractions, is_stratified=True),
}
