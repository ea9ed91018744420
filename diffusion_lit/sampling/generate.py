"""The denoising loop."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from diffusion_lit.diffusion.loss import Diffusion, Network
from diffusion_lit.diffusion.seeds import Seed
from diffusion_lit.sampling.editing import Edit, first_noise, taken_back
from diffusion_lit.sampling.guidance import Within, at
from diffusion_lit.sampling.samplers import Sampler, size, times_of

# (first image of the chunk, evaluation of the network done, x (B, C, H, W) after it, of unit variance)
OnStep = Callable[[int, int, Tensor], None]


@torch.no_grad()
def generate(
    net: Network | Within,
    diffusion: Diffusion,
    sampler: Sampler,
    y: Tensor | Sequence,
    seeds: Sequence[Seed],
    shape: tuple[int, int, int],
    on_step: OnStep = lambda first, k, x: None,
    edit: Edit | None = None,
) -> Tensor:
    """X float32 (N, C, H, W) in [-1, 1] on the CPU, for `Codec.decode`: image k from `seeds[k]`, `y[k]` (as
    `Condition.to_tensor` returns it) and, in an edit, its picture alone.

    They are made `sampler.batch_size` at a time, the last chunk filled up, because the last bits of a convolution
    depend on the batch it runs in. Noise comes from one CPU generator an image, on every device.
    """
    device = diffusion.tables.device
    y, images = torch.as_tensor(y), []
    for start in range(0, len(seeds), sampler.batch_size):
        wanted = min(sampler.batch_size, len(seeds) - start)
        members = [*range(start, start + wanted)] + [start] * (sampler.batch_size - wanted)
        noise, generators = zip(*[first_noise(seeds[k], shape) for k in members], strict=True)
        x = torch.stack(noise).to(device)
        chunk = edit and edit.of(members, device)
        args = y[members].to(device), x, list(generators), chunk, partial(on_step, start)
        x = _denoise(net, diffusion, sampler, *args)
        images.append(x[:wanted].clamp(-1, 1).cpu())
    return torch.cat(images)


def _denoise(net, diffusion, sampler, y, x, generators, edit, on_step) -> Tensor:
    table, following = diffusion.table, 0
    scheduler = sampler.build(table)
    levels = times_of(scheduler, table)
    sizes = [*[size(table, t) for t in levels], 1.0]
    times = [*[t.expand(len(y)) for t in levels.to(x.device)], None]
    plan = edit.plan(len(levels)) if edit else range(len(levels))
    if plan[0] == 0:
        x = x * sizes[0]
    for k in plan:
        if k > following:  # an edit begins in the middle
            x = diffusion.add_noise(edit.x0, times[k], x)
        if k < following:  # or does a step again
            x = taken_back(x, diffusion, times[following], times[k], generators)
        if k != following:
            scheduler = sampler.build(table, begin=k)
        out = diffusion.output(at(net, table, levels[k]), x, times[k], y)
        x0_hat = diffusion.estimate_x0(out, x, times[k])
        if sampler.clip_x0:
            x0_hat = x0_hat.clamp(-1, 1)
        x = sampler.step(scheduler, k, x0_hat, x, table, generators)
        following = k + 1
        if edit:
            x = edit.kept(x, diffusion, times[following], generators)
        on_step(k, x / sizes[following])
    return x
