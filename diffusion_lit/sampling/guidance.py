"""Guidance: classifier-free, by a weaker model, and only at some noise levels."""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_lit.diffusion.conditions import Condition
from diffusion_lit.diffusion.loss import Network
from diffusion_lit.diffusion.schedules import Process


def apply_guidance(uncond: Tensor, cond: Tensor, scale: float | Tensor, rescale: float) -> Tensor:
    """Return uncond + scale (cond - uncond) (Ho & Salimans 2022, eq. 6, there w = scale - 1).

    Args:
        uncond: output without the condition, or of a weaker model, (B, C, H, W).
        cond: output with the condition, (B, C, H, W).
        scale: 1 is `cond`, 0 is `uncond`; a tensor (B, 1, 1, 1) has a scale for each image.
        rescale: in [0, 1], how far to scale the standard deviation of each image back to that of
            `cond`; large guidance scales raise it (Lin et al. 2024, section 3.4).
    """
    out = uncond + scale * (cond - uncond)
    if not rescale:
        return out
    std_cond, std_out = (values.std(dim=(1, 2, 3), keepdim=True) for values in (cond, out))
    return out * (rescale * std_cond / std_out.clamp(min=1e-12) + 1 - rescale)


def add_classifier_free_guidance(
    net: Network, condition: Condition, scale: float | Tensor, rescale: float = 0.0
) -> Network:
    """Return a network with classifier-free guidance (Ho & Salimans 2022).

    Scales 1 and 0, the conditional and the unconditional network, cost one evaluation;
    others cost one evaluation of twice the batch. For `scale` and `rescale` see
    `apply_guidance`.
    """

    def unconditional(x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return net(x_t, t, condition.null(y))

    def guided(x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        y = torch.cat([condition.null(y), y])
        uncond, cond = net(torch.cat([x_t, x_t]), torch.cat([t, t]), y).float().chunk(2)
        return apply_guidance(uncond, cond, scale, rescale)

    if isinstance(scale, Tensor):
        return guided
    if scale == 1:
        return net
    return unconditional if scale == 0 else guided


def add_autoguidance(net: Network, weaker: Network, scale: float, rescale: float = 0.0) -> Network:
    """Return a network guided by a weaker model with the same condition (Karras et al. 2024).

    "Guiding a diffusion model with a bad version of itself": one trained for less
    time, or a smaller one. It pushes away from mistakes that both make, not from
    other classes, so it also serves models without classes. Scale 1 is `net`, 0 is
    `weaker`.
    """

    def guided(x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return apply_guidance(weaker(x_t, t, y).float(), net(x_t, t, y).float(), scale, rescale)

    if scale == 1:
        return net
    return weaker if scale == 0 else guided


@dataclass(frozen=True)
class GuidanceInterval:
    """Guidance only where the noise fraction is in (low, high] (Kynkäänniemi et al. 2024).

    The noise fraction is sigma / (sigma + alpha): 0 for a clean image, 1 for pure noise, t for
    flow matching. So an interval means the same for every process and sampler. The paper's sigma
    is sigma / alpha here, a noise fraction of sigma / (sigma + 1): its (0.28, 5.42] is
    (0.22, 0.84].

    Args:
        guided: network inside the interval.
        plain: network outside it, at its lower cost.
        interval: (low, high), in [0, 1].
    """

    guided: Network
    plain: Network
    interval: tuple[float, float]


def select_network(net: Network | GuidanceInterval, process: Process, t: Tensor) -> Network:
    """Return the network to evaluate at time t, a scalar on the CPU so that no step waits for the device."""
    if not isinstance(net, GuidanceInterval):
        return net
    (alpha, sigma), (low, high) = map(float, process.alpha_sigma(t)), net.interval
    return net.guided if low < sigma / (sigma + alpha) <= high else net.plain
