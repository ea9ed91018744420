"""Classifier-free guidance."""

import torch
from torch import Tensor

from diffusion_lit.diffusion.process import Network


def classifier_free(net: Network, null_label: int, scale: float) -> Network:
    """out = u + scale (c - u), u without and c with the label (Ho & Salimans 2022, eq. 6, written so that 1 is off).

    Scale 1 is the conditional network itself, 0 the unconditional one; both cost one evaluation, others one of twice
    the batch. The null of labels (B,) is `null_label`, that of blends (B, K) is zeros.
    """
    if scale == 1:
        return net

    def null(y: Tensor) -> Tensor:
        return torch.zeros_like(y) if y.is_floating_point() else torch.full_like(y, null_label)

    def unconditional(x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return net(x_t, t, null(y))

    def guided(x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        u, c = net(torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([null(y), y])).float().chunk(2)
        return u + scale * (c - u)

    return unconditional if scale == 0 else guided
