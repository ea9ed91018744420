"""The process: mixing images with noise, the loss, and the estimate of the clean image."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from diffusion_lit.diffusion.parameterization import PREDICTION_TYPES
from diffusion_lit.diffusion.schedules import Process

# y: what a `diffusion_lit.diffusion.conditions.Condition` makes of requests, (B, ...)
Network = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x_t (B,C,H,W), time (B,), y) -> out (B,C,H,W)
Weighting = Callable[[Tensor, Tensor], Tensor]  # (snr (T,), gain (T,)) -> weight on the network's error (T,)

LOSSES = {"mse": torch.square, "l1": torch.abs}


class Row(NamedTuple):
    """What is reckoned with at a noise level, float32, each of one shape."""

    alpha: Tensor
    sigma: Tensor
    c_in: Tensor
    c_skip: Tensor
    c_out: Tensor
    target_x0: Tensor  # what out must be for x0_hat = x0, as a mix of x0...
    target_eps: Tensor  # ...and eps: no cancellation, exact for eps and sample
    weight: Tensor

    def noised(self, x0: Tensor, eps: Tensor) -> Tensor:
        return _per_image(self.alpha) * x0 + _per_image(self.sigma) * eps

    def target(self, x0: Tensor, eps: Tensor) -> Tensor:
        return _per_image(self.target_x0) * x0 + _per_image(self.target_eps) * eps


class Diffusion(nn.Module):
    """A process, a prediction type and a weighting: everything that follows from alpha and sigma, computed in float64.

    At the T levels of the process it is a buffer, so it follows the module to its device, and is never saved: the
    config makes it. A discrete process looks it up there, a continuous one computes it at the times it is asked for.

    Raises:
        ValueError: epsilon prediction at zero terminal SNR, where x0 = (x_t - sigma eps) / 0 has no solution (any
            prediction type whose c_out is infinite there).
    """

    def __init__(self, table: Process, prediction_type: str, weighting: Weighting, loss: str = "mse"):
        super().__init__()
        self.table = table
        self.prediction_type = prediction_type
        self.weighting = weighting
        self.distance = LOSSES[loss]
        self.register_buffer("tables", self._evaluate(table.alpha, table.sigma), persistent=False)
        if not Row(*self.tables).c_out.isfinite().all():
            raise ValueError(f"{prediction_type} is ill-posed at zero terminal SNR: predict sample or v_prediction")

    def _evaluate(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The values of a `Row`, float32 (8, N), for alpha and sigma float64 (N,)."""
        c_in, c_skip, c_out = PREDICTION_TYPES[self.prediction_type](alpha, sigma, self.table.sigma_data)
        weight = self.weighting((alpha / sigma) ** 2, self.distance(c_out))
        targets = (1 - c_skip * alpha) / c_out, -c_skip * sigma / c_out
        return torch.stack([alpha, sigma, c_in, c_skip, c_out, *targets, weight]).float()

    def row(self, t: Tensor) -> Row:
        """At times t (B,), each (B,)."""
        return Row(*self.table.rows(t, self.tables, self._evaluate))

    @property
    def weight(self) -> Tensor:
        """On the network's own error, at the T levels of the process (T,)."""
        return Row(*self.tables).weight

    def add_noise(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t = alpha_t x0 + sigma_t eps for x0, eps (B, C, H, W) and times t (B,)."""
        return self.row(t).noised(x0, eps)

    def target(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """What the network should answer, (B, C, H, W)."""
        return self.row(t).target(x0, eps)

    def output(self, net: Network, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """The network's answer in float32, (B, C, H, W). Autocast, where it is on, touches nothing but the network."""
        return self._answer(self.row(t), net, x_t, t, y)

    def estimate_x0(self, out: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """x0_hat = c_skip x_t + c_out out, (B, C, H, W)."""
        row = self.row(t)
        return _per_image(row.c_skip) * x_t + _per_image(row.c_out) * out

    def error(self, net: Network, x0: Tensor, t: Tensor, eps: Tensor, y: Tensor) -> Tensor:
        """Mean squared (or absolute) error of the network's own answer, unweighted, (B,)."""
        return self._error(self.row(t), net, x0, t, eps, y)

    def loss(self, net: Network, x0: Tensor, t: Tensor, eps: Tensor, y: Tensor) -> Tensor:
        """Weighted loss of each image, (B,)."""
        row = self.row(t)  # once a step: a continuous process computes it
        return row.weight * self._error(row, net, x0, t, eps, y)

    def _error(self, row: Row, net: Network, x0: Tensor, t: Tensor, eps: Tensor, y: Tensor) -> Tensor:
        out = self._answer(row, net, row.noised(x0, eps), t, y)
        return self.distance(out - row.target(x0, eps)).flatten(1).mean(1)

    def _answer(self, row: Row, net: Network, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return net(_per_image(row.c_in) * x_t, self.table.time_input(t), y).float()


def _per_image(values: Tensor) -> Tensor:
    """(B,) to (B, 1, 1, 1)."""
    return values[:, None, None, None]
