"""The random numbers of training, as a function of (seed, position in the stream of images).

Position p = step x global batch size + index in the batch. Numbers are drawn in
blocks of positions, each from a generator of its own, and training on positions
a..b takes that slice. So a resumed run, an accumulated micro-batch and each of many
ranks see the numbers that one uninterrupted run with one big batch sees.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_lit.diffusion.seeds import item_seed
from diffusion_lit.diffusion.timesteps import BELOW_1

BLOCK = 32  # positions; larger wastes work at the ends of a slice, smaller reseeds more often


@dataclass(frozen=True)
class RandomNumbers:
    """The random numbers of B consecutive positions.

    Attributes:
        eps: unit Gaussian noise, (B, C, H, W).
        u_timestep: uniform in [0, 1), (B,), for the timestep.
        u_flip: uniform in [0, 1), (B,), for the horizontal flip.
        u_drop: uniform in [0, 1), (B,), for label dropout.
    """

    eps: Tensor
    u_timestep: Tensor
    u_flip: Tensor
    u_drop: Tensor


def draw_random_numbers(
    seed: int, start: int, count: int, shape: tuple[int, int, int], device: torch.device, strata: int = 1
) -> RandomNumbers:
    """Draw the numbers of positions start .. start + count - 1.

    Args:
        seed: seed of the run.
        start: first position.
        count: number of positions.
        shape: (C, H, W) of the noise.
        device: where to draw; another device gives other numbers.
        strata: above 1, the size of the global batch: each of [k / strata, (k + 1) / strata)
            holds `u_timestep` of one image of the batch (after Kingma et al. 2021,
            appendix I.1), and images of every part of the batch are spread over them.
    """
    generator = torch.Generator(device=device)
    eps, uniform = [], []
    for block in range(start // BLOCK, -(-(start + count) // BLOCK)):
        generator.manual_seed(item_seed(seed, "training", block))
        low, high = max(start - block * BLOCK, 0), min(start + count - block * BLOCK, BLOCK)
        uniform.append(torch.rand(3, BLOCK, generator=generator, device=device)[:, low:high])
        eps.append(torch.randn(BLOCK, *shape, generator=generator, device=device)[low:high])
    u_timestep, u_flip, u_drop = torch.cat(uniform, dim=1)
    if strata > 1:
        index = torch.arange(start, start + count, device=device) % strata
        u_timestep = ((interleave(index, strata) + u_timestep) / strata).clamp(max=BELOW_1)
    return RandomNumbers(torch.cat(eps), u_timestep, u_flip, u_drop)


def interleave(index: Tensor, count: int) -> Tensor:
    """Return a permutation of 0 .. count - 1 in which consecutive numbers are spread evenly.

    Ranks and micro-batches are consecutive parts of a batch. Each sees small and large
    timesteps alike, as batch norms need it: multiples of the golden ratio (Weyl 1916).

    Args:
        index: int64 (N,), in 0 .. count - 1.
        count: how many numbers there are.
    """
    step = round(count * 0.6180339887498949)
    while math.gcd(step, count) > 1:
        step += 1
    return index * step % count


def seed_network(seed: int, position: int) -> None:
    """Seed the generators that dropout inside the network uses, for the micro-batch at a position.

    `torch.manual_seed` does the same, and takes most of a millisecond: it records a
    stack trace for every kind of device that is not in use.
    """
    number = item_seed(seed, "network", position)
    for generator in (torch.default_generator, *torch.cuda.default_generators):  # none before CUDA is first used
        generator.manual_seed(number)
    torch.mps.manual_seed(number)  # does nothing without MPS


def flip_images(x0: Tensor, numbers: RandomNumbers, probability: float) -> Tensor:
    """Flip images (B, C, H, W) left to right, each with the given probability."""
    if not probability:
        return x0
    return torch.where((numbers.u_flip < probability)[:, None, None, None], x0.flip(-1), x0)
