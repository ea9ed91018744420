"""What the network predicts, as rows of a table: x0_hat = c_skip x_t + c_out out(c_in x_t).

Everything else follows from a row. The target of the network is what makes x0_hat = x0, and an error of the output
counts c_out^2 on x0, so a loss weight defined on x0 is right for every prediction type (Karras et al. 2022, eq. 7-8).
"""

from collections.abc import Callable

import torch
from torch import Tensor

Row = tuple[Tensor, Tensor, Tensor]  # c_in, c_skip, c_out, each of the shape of alpha and sigma


def epsilon(alpha: Tensor, sigma: Tensor) -> Row:
    """The noise: x0 = (x_t - sigma eps) / alpha (Ho et al. 2020, eq. 9 and 11)."""
    return torch.ones_like(alpha), 1 / alpha, -sigma / alpha


def sample(alpha: Tensor, sigma: Tensor) -> Row:
    """The clean image itself."""
    return torch.ones_like(alpha), torch.zeros_like(alpha), torch.ones_like(alpha)


def v_prediction(alpha: Tensor, sigma: Tensor) -> Row:
    """v = alpha eps - sigma x0, hence x0 = alpha x_t - sigma v (Salimans & Ho 2022, appendix D)."""
    return torch.ones_like(alpha), alpha, -sigma


PREDICTION_TYPES: dict[str, Callable[[Tensor, Tensor], Row]] = {
    "epsilon": epsilon,
    "sample": sample,
    "v_prediction": v_prediction,
}
