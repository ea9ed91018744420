"""The random numbers of training, as a function of (seed, position in the stream of images).

Position p = step x global batch size + place in the batch. Numbers are drawn in blocks of positions, each block with
a generator of its own, and whoever trains on positions a..b takes that slice: a resumed run, an accumulated
micro-batch and a rank of many see the numbers that one unbroken big batch would have seen.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_lit.diffusion.seeds import counted
from diffusion_lit.diffusion.timesteps import BELOW_1

BLOCK = 32  # positions; larger wastes work at the ends of a slice, smaller reseeds more often


@dataclass(frozen=True)
class Draws:
    """Noise eps (B, C, H, W) and uniform numbers in [0, 1) of shape (B,) for the timestep, the flip, the label drop."""

    eps: Tensor
    timestep: Tensor
    flip: Tensor
    drop: Tensor


def draw(
    seed: int, start: int, count: int, shape: tuple[int, int, int], device: torch.device, strata: int = 1
) -> Draws:
    """Numbers for positions start .. start + count - 1 of images of shape (C, H, W).

    With `strata`, the size of the global batch, that for the timestep lies in the share of [0, 1) which belongs to the
    position's place in the batch: each batch then has one in every share (after Kingma et al. 2021, appendix I.1).
    """
    generator = torch.Generator(device=device)
    eps, uniform = [], []
    for block in range(start // BLOCK, -(-(start + count) // BLOCK)):
        generator.manual_seed(counted(seed, "training", block))
        low, high = max(start - block * BLOCK, 0), min(start + count - block * BLOCK, BLOCK)
        uniform.append(torch.rand(3, BLOCK, generator=generator, device=device)[:, low:high])
        eps.append(torch.randn(BLOCK, *shape, generator=generator, device=device)[low:high])
    timestep, flip, drop = torch.cat(uniform, dim=1)
    if strata > 1:
        place = torch.arange(start, start + count, device=device) % strata
        timestep = ((place + timestep) / strata).clamp(max=BELOW_1)
    return Draws(torch.cat(eps), timestep, flip, drop)


def seed_network(seed: int, position: int) -> None:
    """Seed what dropout inside the network draws from, for the micro-batch that begins at the position.

    Like `torch.manual_seed`, which also writes a stack trace down for every kind of device that is not in use: most of
    a millisecond.
    """
    number = counted(seed, "network", position)
    for generator in (torch.default_generator, *torch.cuda.default_generators):  # of CUDA none before its first use
        generator.manual_seed(number)
    torch.mps.manual_seed(number)  # does nothing elsewhere


def flip(x0: Tensor, draws: Draws, probability: float) -> Tensor:
    """Mirror images (B, C, H, W) left to right, each with the given probability."""
    if not probability:
        return x0
    return torch.where((draws.flip < probability)[:, None, None, None], x0.flip(-1), x0)
