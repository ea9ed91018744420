"""Prediction types, as preconditioning: x0_hat = c_skip x_t + c_out net(c_in x_t).

All else follows from (c_in, c_skip, c_out): the target is the output that makes
x0_hat = x0, and x0 MSE = c_out^2 x output MSE, so a loss weight defined on x0 holds
for every prediction type (Karras et al. 2022, eq. 7-8). Each function holds for any
alpha and sigma of x_t = alpha x0 + sigma eps. To add a prediction type, write a
function and add it to `PREDICTION_TYPES`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Preconditioning(NamedTuple):
    """Scales of the network's input, of the skip connection and of the output, in the shape of sigma."""

    c_in: Tensor
    c_skip: Tensor
    c_out: Tensor


def precondition_epsilon(alpha: Tensor, sigma: Tensor, sigma_data: float = 0.5) -> Preconditioning:
    """Predict the noise: x0 = (x_t - sigma eps) / alpha (Ho et al. 2020, eq. 9 and 11)."""
    return Preconditioning(torch.ones_like(alpha), 1 / alpha, -sigma / alpha)


def precondition_sample(alpha: Tensor, sigma: Tensor, sigma_data: float = 0.5) -> Preconditioning:
    """Predict the clean image, x0."""
    return Preconditioning(torch.ones_like(alpha), torch.zeros_like(alpha), torch.ones_like(alpha))


def precondition_v(alpha: Tensor, sigma: Tensor, sigma_data: float = 0.5) -> Preconditioning:
    """Predict v = alpha eps - sigma x0 (Salimans & Ho 2022, appendix D).

    Hence x0 = (alpha x_t - sigma v) / (alpha^2 + sigma^2).
    """
    variance = alpha**2 + sigma**2
    return Preconditioning(torch.ones_like(alpha), alpha / variance, -sigma / variance)


def precondition_velocity(alpha: Tensor, sigma: Tensor, sigma_data: float = 0.5) -> Preconditioning:
    """Predict eps - x0, the velocity of the straight path from image to noise (Liu et al. 2023).

    Hence x0 = (x_t - sigma velocity) / (alpha + sigma).
    """
    return Preconditioning(torch.ones_like(alpha), 1 / (alpha + sigma), -sigma / (alpha + sigma))


def precondition_edm(alpha: Tensor, sigma: Tensor, sigma_data: float = 0.5) -> Preconditioning:
    """Predict a mix of image and noise such that input and target have unit variance.

    Karras et al. 2022, table 1, there with alpha = 1.

    Args:
        alpha: signal level.
        sigma: noise level, in the shape of alpha.
        sigma_data: standard deviation of the images.
    """
    variance = sigma**2 + (alpha * sigma_data) ** 2
    c_skip = alpha * sigma_data**2 / variance
    return Preconditioning(1 / variance.sqrt(), c_skip, sigma * sigma_data / variance.sqrt())


PREDICTION_TYPES: dict[str, Callable[[Tensor, Tensor, float], Preconditioning]] = {
    "epsilon": precondition_epsilon,
    "sample": precondition_sample,
    "v_prediction": precondition_v,
    "velocity": precondition_velocity,
    "edm": precondition_edm,
}
