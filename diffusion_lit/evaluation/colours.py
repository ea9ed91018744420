"""Colours of two sets of images, channel by channel."""

import torch
from torch import Tensor

CHANNELS = {1: ["grey"], 3: ["red", "green", "blue"], 4: ["red", "green", "blue", "alpha"]}


def colour_statistics(generated: Tensor, real: Tensor) -> dict[str, dict[str, float]]:
    """Mean and standard deviation of each channel of uint8 (N, C, H, W) images, in levels of 255, and `distance`: how
    far its values have to be moved, on average, to turn one histogram into the other (Wasserstein-1)."""
    table = {}
    for c, name in enumerate(CHANNELS[generated.shape[1]]):
        shares = [torch.bincount(z[:, c].flatten().int(), minlength=256).double() / z[:, c].numel()
                  for z in (generated, real)]  # fmt: skip
        moments = [_moments(share) for share in shares]
        names = ("mean", "std", "mean_real", "std_real")
        table[name] = dict(zip(names, (*moments[0], *moments[1]), strict=True))
        table[name]["distance"] = (shares[0] - shares[1]).cumsum(0).abs().sum().item()
    return table


def _moments(share: Tensor) -> tuple[float, float]:
    levels = torch.arange(256, dtype=torch.double)
    mean = (share * levels).sum()
    return mean.item(), (share * (levels - mean).square()).sum().sqrt().item()
