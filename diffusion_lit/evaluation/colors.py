"""Color statistics of two sets of images, channel by channel."""

import torch
from torch import Tensor

COLOR_CHANNELS = {1: ["gray"], 3: ["red", "green", "blue"], 4: ["red", "green", "blue", "alpha"]}


def color_statistics(generated: Tensor, real: Tensor) -> dict[str, dict[str, float]]:
    """Return mean, standard deviation and `distance` of each channel, in levels of 255.

    `distance` is the Wasserstein-1 distance of the two histograms.

    Args:
        generated: uint8 (N, C, H, W).
        real: uint8 (M, C, H, W).
    """
    table, levels = {}, torch.arange(256, dtype=torch.double)
    for c, name in enumerate(COLOR_CHANNELS[generated.shape[1]]):
        shares = [_histogram(images[:, c]).double() / images[:, c].numel() for images in (generated, real)]
        row = {"distance": (shares[0] - shares[1]).cumsum(0).abs().sum().item()}
        for suffix, share in zip(("", "_real"), shares, strict=True):
            mean = (share * levels).sum()
            row |= {f"mean{suffix}": mean.item(), f"std{suffix}": (share * (levels - mean) ** 2).sum().sqrt().item()}
        table[name] = row
    return table


def _histogram(levels: Tensor) -> Tensor:
    """Return the counts of 0 to 255, (256,), a few images at a time."""
    return sum(torch.bincount(part.flatten().int(), minlength=256) for part in levels.split(1000))
