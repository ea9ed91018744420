"""Exponential moving average of a network, under its own name and never swapped with it.

A decay is a function of the number of earlier updates, of which there is one at every `update_every`-th optimizer step:
the steps that are done say all of it, and nothing of it is saved. A step that is skipped counts as one that is done.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import nn


class Decay(Protocol):
    """The decay of update n = 0, 1, ..., which runs after every `update_every` optimizer steps."""

    @property
    def update_every(self) -> int:
        """Return the number of optimizer steps between two updates."""

    def __call__(self, n: int) -> float:
        """Return the decay of the update after n earlier ones."""


@dataclass(frozen=True)
class PowerDecay:
    """decay_n = min(max_decay, 1 - (1 + n / inv_gamma)^-power) for the update after n earlier ones (K. Crowson).

    The first update copies. Early averages are short, so that the average is never dominated by the untrained network;
    power 3/4 reaches 0.999 after 10,000 updates and 0.9999 after 215,000, power 2/3 after 31,600 and 1 million.
    """

    inv_gamma: float = 1.0
    power: float = 0.75
    max_decay: float = 0.9999
    update_every: int = 1

    def __call__(self, n: int) -> float:
        return min(self.max_decay, 1 - (1 + n / self.inv_gamma) ** -self.power)


@dataclass(frozen=True)
class ConstantDecay:
    """decay_n = decay. The untrained network counts decay^n after n updates: 0.7 % after a thousand of 0.995."""

    decay: float = 0.995
    update_every: int = 1

    def __call__(self, n: int) -> float:
        return self.decay


@dataclass(frozen=True)
class RisingDecay:
    """decay_n = 1 - (1 - decay) (cos(pi n / N) + 1) / 2 for N updates in the run (Grill et al. 2020, section 3.3).

    From `decay` it rises to 1 by half a cosine: in the end hardly anything is added to the average. A run that is made
    longer goes on along the curve of its new length.
    """

    max_steps: int  # optimizer steps of the run
    decay: float = 0.996
    update_every: int = 1

    def __call__(self, n: int) -> float:
        progress = min(1.0, n * self.update_every / self.max_steps)
        return 1 - (1 - self.decay) * (math.cos(math.pi * progress) + 1) / 2


@dataclass(frozen=True)
class NoEMA:
    """`ema=none`: the averaged network is the trained network itself."""


class Tensors(NamedTuple):
    """Parameters and buffers of a network."""

    floating: list[torch.Tensor]
    others: list[torch.Tensor]


def split_tensors(net: nn.Module) -> Tensors:
    """Once the network is where it stays: to walk through its modules at every step would cost milliseconds."""
    tensors = [*net.parameters(), *net.buffers()]
    return Tensors([t for t in tensors if t.is_floating_point()], [t for t in tensors if not t.is_floating_point()])


@torch.no_grad()
def update_ema(average: Tensors, net: Tensors, decay: float, skipped: torch.Tensor | None = None) -> None:
    """Average <- decay average + (1 - decay) net, float32, buffers too (integer buffers are copied).

    Where `skipped`, a bool on the device that nothing waits for, is true, the average is left as it is.
    """
    nets = [b.to(a.dtype) for a, b in zip(average.floating, net.floating, strict=True)]
    if skipped is None:
        skipped = torch.zeros((), dtype=torch.bool, device=nets[0].device)
    share = torch.where(skipped, 0.0, 1 - decay)  # of the network; a tensor costs no more than a number, on a CPU
    torch._foreach_lerp_(average.floating, nets, [share] * len(nets))
    for a, b in zip(average.others, net.others, strict=True):
        a.copy_(b)


@torch.no_grad()
def relative_distance(average: nn.Module, net: nn.Module) -> float:
    """|average - net| / |net|, the Euclidean norm over all parameters."""
    weights: list[torch.Tensor] = list(net.parameters())
    differences = torch._foreach_sub(list(average.parameters()), weights)
    norms = [torch.stack(torch._foreach_norm(tensors)).norm() for tensors in (differences, weights)]
    return (norms[0] / norms[1]).item()


@torch.no_grad()
def all_finite(net: nn.Module) -> bool:
    """Whether every weight and floating buffer is a number; waits for the device."""
    norms = torch._foreach_norm(split_tensors(net).floating, float("inf"))
    return bool(torch.stack(norms).isfinite().all())
