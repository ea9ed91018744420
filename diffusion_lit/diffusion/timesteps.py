"""How training spreads over the noise levels: from uniform numbers to shares of the way from clean to noise."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

BELOW_1 = 1 - 2**-24  # the largest float32 below 1


def uniform(u: Tensor, mean: float, std: float) -> Tensor:
    """Every share as often. `mean` and `std` belong to the others and have no meaning here."""
    return u


def logit_normal(u: Tensor, mean: float, std: float) -> Tensor:
    """log(s / (1 - s)) is normal (Esser et al. 2024, eq. 19): the middle more often than the ends."""
    return torch.sigmoid(mean + std * torch.special.ndtri(u)).clamp(max=BELOW_1)


class Spread(NamedTuple):
    """Uniform numbers in [0, 1) to shares in [0, 1), and whether a global batch has one number in each equal part."""

    shape: Callable[[Tensor, float, float], Tensor]
    stratified: bool = False


TIMESTEP_SAMPLING = {
    "uniform": Spread(uniform),
    "stratified": Spread(uniform, stratified=True),
    "logit_normal": Spread(logit_normal),
    "stratified_logit_normal": Spread(logit_normal, stratified=True),
}
