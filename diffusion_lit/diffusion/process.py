"""The process: mixing images with noise, the loss, and the estimate of the clean image."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from diffusion_lit.diffusion.noise import NoiseTable
from diffusion_lit.diffusion.prediction import PREDICTION_TYPES

# y: labels (B,) int64, or blends of K classes (B, K) float32 for a network that has `takes_blends`
Network = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x_t (B,C,H,W), time (B,), y) -> out (B,C,H,W)
Weighting = Callable[[Tensor, Tensor], Tensor]  # (snr (T,), gain (T,)) -> weight on the network's error (T,)

LOSSES = {"mse": torch.square, "l1": torch.abs}


class Diffusion(nn.Module):
    """A noise table, a prediction type and a weighting, as float32 tables of shape (T,) computed in float64.

    The tables are buffers, so they follow the module to its device, and are never saved: the config makes them.

    Raises:
        ValueError: epsilon prediction at zero terminal SNR, where x0 = (x_t - sigma eps) / 0 has no solution (any
            prediction type whose c_out is infinite there).
    """

    def __init__(self, table: NoiseTable, prediction_type: str, weighting: Weighting, loss: str = "mse"):
        super().__init__()
        alpha, sigma = table.alpha, table.sigma
        c_in, c_skip, c_out = PREDICTION_TYPES[prediction_type](alpha, sigma)
        if not c_out.isfinite().all():
            raise ValueError(f"{prediction_type} is ill-posed at zero terminal SNR: predict sample or v_prediction")
        distance = LOSSES[loss]
        weight = weighting(table.snr, distance(c_out))
        tables = {
            "alpha": alpha,
            "sigma": sigma,
            "c_in": c_in,
            "c_skip": c_skip,
            "c_out": c_out,
            # what out must be for x0_hat = x0, as a mix of x0 and eps: no cancellation, exact for eps and sample
            "target_x0": (1 - c_skip * alpha) / c_out,
            "target_eps": -c_skip * sigma / c_out,
            "weight": weight,
        }
        for name, values in tables.items():
            self.register_buffer(name, values.float(), persistent=False)
        self.table = table
        self.prediction_type = prediction_type
        self.distance = distance

    def add_noise(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t = alpha_t x0 + sigma_t eps for x0, eps (B, C, H, W) and t (B,)."""
        return _per_image(self.alpha[t]) * x0 + _per_image(self.sigma[t]) * eps

    def target(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """What the network should answer, (B, C, H, W)."""
        return _per_image(self.target_x0[t]) * x0 + _per_image(self.target_eps[t]) * eps

    def output(self, net: Network, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """The network's answer in float32, (B, C, H, W). Autocast, where it is on, touches nothing but the network."""
        return net(_per_image(self.c_in[t]) * x_t, self.table.time_input(t), y).float()

    def estimate_x0(self, out: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """x0_hat = c_skip x_t + c_out out, (B, C, H, W)."""
        return _per_image(self.c_skip[t]) * x_t + _per_image(self.c_out[t]) * out

    def error(self, net: Network, x0: Tensor, t: Tensor, eps: Tensor, y: Tensor) -> Tensor:
        """Mean squared (or absolute) error of the network's own answer, unweighted, (B,)."""
        out = self.output(net, self.add_noise(x0, t, eps), t, y)
        return self.distance(out - self.target(x0, t, eps)).flatten(1).mean(1)

    def loss(self, net: Network, x0: Tensor, t: Tensor, eps: Tensor, y: Tensor) -> Tensor:
        """Weighted loss of each image, (B,)."""
        return self.weight[t] * self.error(net, x0, t, eps, y)


def _per_image(values: Tensor) -> Tensor:
    """(B,) to (B, 1, 1, 1)."""
    return values[:, None, None, None]
