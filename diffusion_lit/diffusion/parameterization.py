"""What the network predicts, as rows of a table: x0_hat = c_skip x_t + c_out out(c_in x_t).

Everything else follows from a row. The target of the network is what makes x0_hat = x0, and an error of the output
counts c_out^2 on x0, so a loss weight defined on x0 is right for every prediction type (Karras et al. 2022, eq. 7-8).
Each row is right for every process, x_t = alpha x0 + sigma eps of any alpha and sigma.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Row = tuple[Tensor, Tensor, Tensor]  # c_in, c_skip, c_out, each of the shape of alpha and sigma


def epsilon(alpha: Tensor, sigma: Tensor, sigma_data: float = 0.5) -> Row:
    """The noise: x0 = (x_t - sigma eps) / alpha (Ho et al. 2020, eq. 9 and 11)."""
    return torch.ones_like(alpha), 1 / alpha, -sigma / alpha


def sample(alpha: Tensor, sigma: Tensor, sigma_data: float = 0.5) -> Row:
    """The clean image itself."""
    return torch.ones_like(alpha), torch.zeros_like(alpha), torch.ones_like(alpha)


def v_prediction(alpha: Tensor, sigma: Tensor, sigma_data: float = 0.5) -> Row:
    """V = alpha eps - sigma x0, hence x0 = alpha x_t - sigma v where alpha^2 + sigma^2 = 1 (Salimans & Ho 2022,
    appendix D).
    """
    variance = alpha**2 + sigma**2
    return torch.ones_like(alpha), alpha / variance, -sigma / variance


def velocity(alpha: Tensor, sigma: Tensor, sigma_data: float = 0.5) -> Row:
    """Eps - x0, the direction of the flow's straight way (Liu et al. 2023); x0 = x_t - t (eps - x0) there."""
    return torch.ones_like(alpha), 1 / (alpha + sigma), -sigma / (alpha + sigma)


def edm(alpha: Tensor, sigma: Tensor, sigma_data: float = 0.5) -> Row:
    """A mix of image and noise such that input and target are of unit variance, for images of standard deviation
    `sigma_data` (Karras et al. 2022, table 1, where alpha = 1).
    """
    variance = sigma**2 + (alpha * sigma_data) ** 2
    return 1 / variance.sqrt(), alpha * sigma_data**2 / variance, sigma * sigma_data / variance.sqrt()


PREDICTION_TYPES: dict[str, Callable[..., Row]] = {  # (alpha, sigma, sigma_data) -> row
    "epsilon": epsilon,
    "sample": sample,
    "v_prediction": v_prediction,
    "velocity": velocity,
    "edm": edm,
}
