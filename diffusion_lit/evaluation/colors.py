"""Colours of two sets of images, channel by channel."""

import torch
from torch import Tensor

CHANNELS = {1: ["grey"], 3: ["red", "green", "blue"], 4: ["red", "green", "blue", "alpha"]}


def colour_statistics(generated: Tensor, real: Tensor) -> dict[str, dict[str, float]]:
    """Mean and standard deviation of each channel of uint8 (N, C, H, W) images, in levels of 255, and `distance`: how
    far its values have to be moved, on average, to turn one histogram into the other (Wasserstein-1).
    """
    table, levels = {}, torch.arange(256, dtype=torch.double)
    for c, name in enumerate(CHANNELS[generated.shape[1]]):
        shares = [_counts(z[:, c]).double() / z[:, c].numel() for z in (generated, real)]
        row = {"distance": (shares[0] - shares[1]).cumsum(0).abs().sum().item()}
        for end, share in zip(("", "_real"), shares, strict=True):
            mean = (share * levels).sum()
            row |= {f"mean{end}": mean.item(), f"std{end}": (share * (levels - mean) ** 2).sum().sqrt().item()}
        table[name] = row
    return table


def _counts(levels: Tensor) -> Tensor:
    """How often each of 0 to 255 is there (256,), a few images at a time."""
    return sum(torch.bincount(part.flatten().int(), minlength=256) for part in levels.split(1000))
