"""Work that the ranks of a run do together, each a part, with the same result as one alone."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from diffusion_lit.build import guided
from diffusion_lit.images import to_uint8
from diffusion_lit.sampling.generate import generate
from diffusion_lit.sampling.samplers import Sampler
from diffusion_lit.training.module import DiffusionModule
from diffusion_lit.training.probe import Probe
from diffusion_lit.training.ranks import shared


class Stopped(Exception):
    """Raised by `on_step` to ask for the end in the middle of the work."""


@contextmanager
def evaluated(*nets: nn.Module) -> Iterator[None]:
    """The networks in evaluation mode, then as they were."""
    modes = [net.training for net in nets]
    for net in nets:
        net.eval()
    try:
        yield
    finally:
        for net, mode in zip(nets, modes, strict=True):
            net.train(mode)


def samples(
    nets: Sequence[nn.Module],
    module: DiffusionModule,
    sampler: Sampler,
    labels: Sequence[int],
    seeds: Sequence[int],
    on_step: Callable[[nn.Module, int, int, Tensor], None] = lambda net, first, k, x: None,
) -> list[Tensor] | None:
    """Images uint8 (N, C, H, W) of each network, with the run's guidance; None if any rank was `Stopped`.

    `on_step` is called as that of `generate`, with the network before its other arguments.
    """
    parts = [slice(start, start + sampler.batch_size) for start in range(0, len(seeds), sampler.batch_size)]
    tasks = [(net, part) for net in nets for part in parts]

    def work(k: int) -> Tensor | None:
        net, part = tasks[k]

        def watch(first: int, step: int, x: Tensor) -> None:
            on_step(net, part.start + first, step, x)

        model = guided(net, module.config)
        try:
            return to_uint8(generate(model, module.diffusion, sampler, labels[part], seeds[part], module.shape, watch))
        except Stopped:
            return None

    with evaluated(*nets):
        done = shared(work, len(tasks))
    if any(images is None for images in done):
        return None
    return [torch.cat(done[k * len(parts) : (k + 1) * len(parts)]) for k in range(len(nets))]


def held_out(nets: Sequence[nn.Module], probe: Probe) -> list[tuple[float, list[float]]]:
    """`Probe.losses` of each network."""
    tasks = [(net, part) for net in nets for part in probe.parts]
    with evaluated(*nets):
        errors = shared(lambda k: probe.errors(*tasks[k]), len(tasks))
    count = len(probe.parts)
    return [probe.summed_up(errors[k * count : (k + 1) * count]) for k in range(len(nets))]
