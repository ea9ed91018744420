"""Color statistics of two sets of images, channel by channel."""

import torch
from torch import Tensor

from diffusion_lit.evaluation.classifier import premultiply_alpha

COLOR_CHANNELS = {1: ["gray"], 3: ["red", "green", "blue"], 4: ["red", "green", "blue", "alpha"]}


def color_statistics(generated: Tensor, real: Tensor) -> dict[str, dict[str, float]]:
    """Return mean, standard deviation and `distance` of each channel, in levels of 255.

    `distance` is the Wasserstein-1 distance of the two histograms. Colors are multiplied
    by alpha: those of transparent pixels do not count.

    Args:
        generated: uint8 (N, C, H, W).
        real: uint8 (M, C, H, W).
    """
    table, levels = {}, torch.arange(256, dtype=torch.double)
    for c, name in enumerate(COLOR_CHANNELS[generated.shape[1]]):
        shares = [_histogram(images, c).double() / images[:, c].numel() for images in (generated, real)]
        row = {"distance": (shares[0] - shares[1]).cumsum(0).abs().sum().item()}
        for suffix, share in zip(("", "_real"), shares, strict=True):
            mean = (share * levels).sum()
            row |= {f"mean{suffix}": mean.item(), f"std{suffix}": (share * (levels - mean) ** 2).sum().sqrt().item()}
        table[name] = row
    return table


def _histogram(images: Tensor, c: int) -> Tensor:
    """Return the counts of 0 to 255 in a channel, (256,), a few images at a time."""
    parts = (premultiply_alpha(part)[:, c] * 255 for part in images.split(1000))
    return sum(torch.bincount(part.round().int().flatten(), minlength=256) for part in parts)
