"""The diffusion model: noising, network target, estimate of x0, and training loss."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from diffusion_lit.diffusion.parameterization import PREDICTION_TYPES
from diffusion_lit.diffusion.schedules import Process

# (x_t (B, C, H, W), time (B,), y (B, ...) of a Condition) -> output (B, C, H, W)
Network = Callable[[Tensor, Tensor, Tensor], Tensor]
Weighting = Callable[[Tensor, Tensor], Tensor]  # (snr, gain) -> weight on the output error, all (T,) or (B,)

LOSS_FUNCTIONS = {"mse": torch.square, "l1": torch.abs}


class Coefficients(NamedTuple):
    """The coefficients of noise levels, float32, each of the same shape.

    Attributes:
        alpha: signal level, x_t = alpha x0 + sigma eps.
        sigma: noise level.
        c_in: scale of the network's input.
        c_skip: x0_hat = c_skip x_t + c_out output.
        c_out: see `c_skip`.
        target_x0: target = target_x0 x0 + target_eps eps is the output that makes
            x0_hat = x0. Computed from x0 and eps, not from x_t, so that no digits
            cancel.
        target_eps: see `target_x0`.
        weight: loss weight on the error of the output.
    """

    alpha: Tensor
    sigma: Tensor
    c_in: Tensor
    c_skip: Tensor
    c_out: Tensor
    target_x0: Tensor
    target_eps: Tensor
    weight: Tensor

    def add_noise(self, x0: Tensor, eps: Tensor) -> Tensor:
        """Return x_t = alpha x0 + sigma eps, all (B, C, H, W)."""
        return _per_image(self.alpha) * x0 + _per_image(self.sigma) * eps

    def target(self, x0: Tensor, eps: Tensor) -> Tensor:
        """Return the target of the network, target_x0 x0 + target_eps eps, (B, C, H, W)."""
        return _per_image(self.target_x0) * x0 + _per_image(self.target_eps) * eps


class Diffusion(nn.Module):
    """A process with a prediction type and a loss weighting.

    All coefficients follow from the process's alpha and sigma, in float64. Those at
    its T levels are a buffer, which follows the module to its device and is never
    saved. A discrete process looks them up there; a continuous one computes them at
    the requested times.

    Args:
        process: noise levels, see `diffusion_lit.diffusion.processes`.
        prediction_type: what the network predicts, a key of `PREDICTION_TYPES`.
        weighting: a class of `diffusion_lit.diffusion.weighting`.
        loss: "mse" or "l1".

    Raises:
        ValueError: if c_out is infinite at a level of the process, as for epsilon
            at zero terminal SNR, where x0 = (x_t - sigma eps) / 0 has no solution.
    """

    coefficient_table: Tensor

    def __init__(self, process: Process, prediction_type: str, weighting: Weighting, loss: str = "mse"):
        super().__init__()
        self.process = process
        self.prediction_type = prediction_type
        self.weighting = weighting
        self.pointwise_loss = LOSS_FUNCTIONS[loss]
        table = self._compute_coefficients(process.alpha, process.sigma)
        self.register_buffer("coefficient_table", table, persistent=False)
        if not Coefficients(*table).c_out.isfinite().all():
            raise ValueError(f"{prediction_type} is ill-posed at zero terminal SNR: predict sample or v_prediction")

    def _compute_coefficients(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return the fields of `Coefficients`, float32 (8, N), of alpha and sigma float64 (N,)."""
        c_in, c_skip, c_out = PREDICTION_TYPES[self.prediction_type](alpha, sigma, self.process.sigma_data)
        gain = self.pointwise_loss(c_out)  # x0 error / output error: c_out^2 for mse, |c_out| for l1
        weight = self.weighting((alpha / sigma) ** 2, gain)
        targets = (1 - c_skip * alpha) / c_out, -c_skip * sigma / c_out
        return torch.stack([alpha, sigma, c_in, c_skip, c_out, *targets, weight]).float()

    def coefficients(self, t: Tensor) -> Coefficients:
        """Return the coefficients at times t (B,), each (B,)."""
        if self.process.is_discrete:
            return Coefficients(*self.coefficient_table[:, t])
        return Coefficients(*self._compute_coefficients(*self.process.alpha_sigma(t)))

    @property
    def weight(self) -> Tensor:
        """Return the weight on the error of the output at the T levels of the process, (T,)."""
        return Coefficients(*self.coefficient_table).weight

    def add_noise(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Return x_t = alpha_t x0 + sigma_t eps, (B, C, H, W), at times t (B,)."""
        return self.coefficients(t).add_noise(x0, eps)

    def output(self, net: Network, x_t: Tensor, t: Tensor, y: Tensor, c: Coefficients | None = None) -> Tensor:
        """Return the network's output in float32, (B, C, H, W).

        Autocast applies to the network only. `c`: the coefficients at times t, if they are known.
        """
        c = c or self.coefficients(t)
        return net(_per_image(c.c_in) * x_t, self.process.time_input(t), y).float()

    def estimate_x0(self, out: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Return x0_hat = c_skip x_t + c_out output, (B, C, H, W) (Karras et al. 2022, eq. 7)."""
        c = self.coefficients(t)
        return _per_image(c.c_skip) * x_t + _per_image(c.c_out) * out

    def error(self, net: Network, x0: Tensor, t: Tensor, eps: Tensor, y: Tensor) -> Tensor:
        """Return the unweighted mean error of each image's output, squared or absolute, (B,)."""
        return self._error(self.coefficients(t), net, x0, t, eps, y)

    def loss(self, net: Network, x0: Tensor, t: Tensor, eps: Tensor, y: Tensor) -> Tensor:
        """Return the weighted loss of each image, (B,).

        Args:
            net: the network to train.
            x0: clean images in the codec's space, (B, C, H, W).
            t: times, (B,).
            eps: unit Gaussian noise, (B, C, H, W).
            y: condition, (B, ...).
        """
        c = self.coefficients(t)  # once a step: a continuous process computes them
        return c.weight * self._error(c, net, x0, t, eps, y)

    def _error(self, c: Coefficients, net: Network, x0: Tensor, t: Tensor, eps: Tensor, y: Tensor) -> Tensor:
        out = self.output(net, c.add_noise(x0, eps), t, y, c)
        return self.pointwise_loss(out - c.target(x0, eps)).flatten(1).mean(1)


def _per_image(values: Tensor) -> Tensor:
    """Return values (B,) as (B, 1, 1, 1)."""
    return values[:, None, None, None]
