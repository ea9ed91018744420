"""Exponential moving averages (EMA) of a network: decay schedules and updates.

The EMA is a network of its own and is never swapped with the trained one. Its decay is a
function of the number of earlier updates, and an update follows every `update_every`-th
optimizer step. So the step alone determines the decay, and a checkpoint holds no further
state. A skipped step counts as a step.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from diffusion_lit.runs import posthoc_ema  # shared with sampling, which reconstructs EMAs from the tracked ones


class Decay(Protocol):
    """The decay of update n = 0, 1, ..., which runs after every `update_every` optimizer steps."""

    @property
    def update_every(self) -> int:
        """Return the number of optimizer steps between two updates."""

    def __call__(self, n: int) -> float:
        """Return the decay of the update after n earlier ones."""


@dataclass(frozen=True)
class PowerDecay:
    """Decay min(max_decay, 1 - (1 + n / inv_gamma)^-power) for the update after n earlier ones (K. Crowson).

    The first update copies the network. Early averages are short, so the untrained network
    never dominates. Power 3/4 reaches 0.999 after 10,000 updates and 0.9999 after 215,000,
    power 2/3 after 31,600 and 1 million.
    """

    inv_gamma: float = 1.0
    power: float = 0.75
    max_decay: float = 0.9999
    update_every: int = 1

    def __call__(self, n: int) -> float:
        """Return the decay of the update after n earlier ones."""
        return min(self.max_decay, 1 - (1 + n / self.inv_gamma) ** -self.power)


@dataclass(frozen=True)
class ConstantDecay:
    """The same decay for each update.

    The untrained network has weight decay^n after n updates: 0.7 % after 1,000 updates with
    0.995.
    """

    decay: float = 0.995
    update_every: int = 1

    def __call__(self, n: int) -> float:
        """Return the decay of the update after n earlier ones."""
        return self.decay


@dataclass(frozen=True)
class RisingDecay:
    """Decay 1 - (1 - decay) (cos(pi n / N) + 1) / 2 for the update after n of N (Grill et al. 2020, section 3.3).

    The decay rises from `decay` to 1 along half a cosine, so the last updates add
    hardly anything. A run that is extended continues on the curve of its new
    length.
    """

    max_steps: int  # optimizer steps of the run
    decay: float = 0.996
    update_every: int = 1

    def __call__(self, n: int) -> float:
        """Return the decay of the update after n earlier ones."""
        progress = min(1.0, n * self.update_every / self.max_steps)
        return 1 - (1 - self.decay) * (math.cos(math.pi * progress) + 1) / 2


@dataclass(frozen=True)
class NoEMA:
    """Disable the EMA (`ema=none`): the trained network takes its place."""


def decay_at_step(decay: Decay, step: int) -> float:
    """Return the decay of the last update up to optimizer step `step`, counted from 1; before any, of the first."""
    return decay(max(0, step // decay.update_every - 1))


class NetworkTensors(NamedTuple):
    """Parameters and buffers of a network."""

    floating: list[Tensor]
    integer: list[Tensor]


def split_tensors(net: nn.Module) -> NetworkTensors:
    """Return the tensors of a network. Call it once: walking through all modules at each step takes milliseconds."""
    tensors = [*net.parameters(), *net.buffers()]
    return NetworkTensors(
        [t for t in tensors if t.is_floating_point()], [t for t in tensors if not t.is_floating_point()]
    )


@torch.no_grad()
def update_ema(ema: NetworkTensors, net: NetworkTensors, decay: float, is_skipped: Tensor | None = None) -> None:
    """Set ema = decay * ema + (1 - decay) * net in float32, buffers included. Integer buffers are copied.

    Args:
        ema: tensors to update in place.
        net: tensors of the trained network.
        decay: weight of the old average.
        is_skipped: bool (), on the device; the floating tensors stay as they are where it
            is true.
    """
    weights = [b.to(a.dtype) for a, b in zip(ema.floating, net.floating, strict=True)]
    if is_skipped is None:
        is_skipped = torch.zeros((), dtype=torch.bool, device=weights[0].device)
    share = torch.where(is_skipped, 0.0, 1 - decay)  # a tensor, so that the CPU does not wait for the device
    # a fused interpolation does not reach its end exactly, which the first updates copy
    is_fused = weights[0].device.type != "cpu" and 1 - decay < 0.5
    if is_fused:
        lerp_fused_(ema.floating, weights, share)
    else:
        torch._foreach_lerp_(ema.floating, weights, [share] * len(weights))
    for a, b in zip(ema.integer, net.integer, strict=True):
        a.copy_(b)


def lerp_fused_(ema: list[Tensor], net: list[Tensor], share: Tensor) -> None:
    """Set ema = ema + share * (net - ema), in three fused kernels per hundred tensors on a GPU.

    `torch._foreach_lerp_` has no fused kernel for a weight on the device, float (), which a step
    that may be skipped needs.
    """
    difference = torch._foreach_sub(net, ema)
    torch._foreach_mul_(difference, share)
    torch._foreach_add_(ema, difference)


class EMAUpdater:
    """Updates the EMA of a network, and the EMAs tracked for `ema_length`, after each optimizer step.

    Args:
        net: the trained network.
        ema: its EMA, updated with `decay`; the same network for no EMA.
        decay: decay of the EMA, or None.
        tracked_emas: power-function EMAs, see `runs/posthoc_ema.py`.
        lengths: length of each of them.
    """

    def __init__(
        self,
        net: nn.Module,
        ema: nn.Module,
        decay: Decay | None,
        tracked_emas: Iterable[nn.Module],
        lengths: Sequence[float],
    ):
        self.net, self.ema, self.decay = split_tensors(net), split_tensors(ema), decay
        self.tracked = [(split_tensors(net), length) for net, length in zip(tracked_emas, lengths, strict=True)]

    def update(self, step: int, is_skipped: Tensor) -> None:
        """Update all EMAs after optimizer step `step`, counted from 1; leave them as they are if it was skipped."""
        if self.decay is not None and step % self.decay.update_every == 0:
            update_ema(self.ema, self.net, decay_at_step(self.decay, step), is_skipped)
        for ema, length in self.tracked:
            update_ema(ema, self.net, posthoc_ema.compute_decay(length, step), is_skipped)


@torch.no_grad()
def relative_distance(ema: nn.Module, net: nn.Module) -> float:
    """Return |ema - net| / |net|, Euclidean norms over all parameters."""
    weights: list[Tensor] = list(net.parameters())
    differences = torch._foreach_sub(list(ema.parameters()), weights)
    norms = [torch.stack(torch._foreach_norm(tensors)).norm() for tensors in (differences, weights)]
    return (norms[0] / norms[1]).item()


@torch.no_grad()
def is_finite(net: nn.Module) -> bool:
    """Return whether all weights and floating buffers are finite. Waits for the device."""
    norms = torch._foreach_norm(split_tensors(net).floating, float("inf"))
    return bool(torch.stack(norms).isfinite().all())
