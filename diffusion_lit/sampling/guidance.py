"""Classifier-free guidance."""

import torch
from torch import Tensor

from diffusion_lit.diffusion.process import Network


def classifier_free(net: Network, null_label: int, scale: float) -> Network:
    """out = u + scale (c - u), u without and c with the label (Ho & Salimans 2022, eq. 6, written so that 1 is off).

    Scale 1 is the conditional network itself, 0 the unconditional one; both cost one evaluation, others one of twice
    the batch.
    """
    if scale == 1:
        return net

    def unconditional(x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return net(x_t, t, torch.full_like(y, null_label))

    def guided(x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        labels = torch.cat([torch.full_like(y, null_label), y])
        u, c = net(torch.cat([x_t, x_t]), torch.cat([t, t]), labels).float().chunk(2)
        return u + scale * (c - u)

    return unconditional if scale == 0 else guided
