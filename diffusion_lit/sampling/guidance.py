"""Guidance: away from what the network says without the label, or from what a worse network says."""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_lit.diffusion.conditions import Condition
from diffusion_lit.diffusion.loss import Network
from diffusion_lit.diffusion.schedules import Process


def classifier_free(net: Network, condition: Condition, scale: float, rescale: float = 0.0) -> Network:
    """Out = u + scale (c - u), u without and c with the label (Ho & Salimans 2022, eq. 6, written so that 1 is off).

    Scale 1 is the conditional network itself, 0 the unconditional one; both cost one evaluation, others one of twice
    the batch. For `rescale` see `led_away`.
    """
    if scale == 1:
        return net

    def unconditional(x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return net(x_t, t, condition.null(y))

    def guided(x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        u, c = net(torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([condition.null(y), y])).float().chunk(2)
        return led_away(u, c, scale, rescale)

    return unconditional if scale == 0 else guided


def autoguided(net: Network, guide: Network, scale: float, rescale: float = 0.0) -> Network:
    """Out = g + scale (c - g), g of a worse network with the same label (Karras et al. 2024, "Guiding a diffusion model
    with a bad version of itself"): one trained for less time, or a smaller one. Scale 1 is `net`, 0 is `guide`.

    It pushes away from the mistakes that both make and not from other classes, so it serves runs without classes too.
    """

    def guided(x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return led_away(guide(x_t, t, y).float(), net(x_t, t, y).float(), scale, rescale)

    return {1: net, 0: guide}.get(scale, guided)


def led_away(worse: Tensor, better: Tensor, scale: float, rescale: float) -> Tensor:
    """Worse + scale (better - worse), network outputs (B, C, H, W).

    Large scales make it larger than any output was in training, and images harsh. `rescale` is how far, from 0 to 1,
    the standard deviation of each image is taken back to that of `better` (Lin et al. 2024, section 3.4).
    """
    out = worse + scale * (better - worse)
    if not rescale:
        return out
    wanted, is_now = (values.std(dim=(1, 2, 3), keepdim=True) for values in (better, out))
    return out * (rescale * wanted / is_now.clamp(min=1e-12) + 1 - rescale)


@dataclass(frozen=True)
class Within:
    """Guidance where the share of noise is in the interval (low, high], and `plain` elsewhere, for what that costs
    (Kynkäänniemi et al. 2024).

    The share is sigma / (sigma + alpha): 0 is a clean image, 1 pure noise, the time t of a flow. So an interval means
    the same for every process, sampler and number of steps. The paper's sigma is our sigma / alpha: share
    sigma / (sigma + 1), and its (0.28, 5.42] is (0.22, 0.84].
    """

    guided: Network
    plain: Network
    interval: tuple[float, float]


def at(net: Network | Within, table: Process, t: Tensor) -> Network:
    """The network to use at time t, one number on the CPU: no step waits for the device."""
    if not isinstance(net, Within):
        return net
    (alpha, sigma), (low, high) = map(float, table.alpha_sigma(t)), net.interval
    return net.guided if low < sigma / (sigma + alpha) <= high else net.plain
