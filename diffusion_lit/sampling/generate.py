"""The denoising loop."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from diffusion_lit.diffusion.process import Diffusion, Network
from diffusion_lit.sampling.labels import Label
from diffusion_lit.sampling.samplers import Sampler, size, times_of

# (first image of the chunk, evaluation of the network done, x (B, C, H, W) after it, of unit variance)
OnStep = Callable[[int, int, Tensor], None]


@torch.no_grad()
def generate(
    net: Network,
    diffusion: Diffusion,
    sampler: Sampler,
    labels: Sequence[Label],
    seeds: Sequence[int],
    shape: tuple[int, int, int],
    on_step: OnStep = lambda first, k, x: None,
) -> Tensor:
    """Images float32 (N, C, H, W) in [-1, 1] on the CPU, image k from `seeds[k]` and `labels[k]` alone.

    They are made `sampler.batch_size` at a time, the last chunk filled up, because the last bits of a convolution
    depend on the batch it runs in. Noise comes from one CPU generator an image, on every device.
    """
    device = diffusion.tables.device
    images = []
    for start in range(0, len(seeds), sampler.batch_size):
        chunk = slice(start, start + sampler.batch_size)
        wanted = len(seeds[chunk])
        fill = sampler.batch_size - wanted
        y = torch.tensor([*labels[chunk]] + [labels[start]] * fill, device=device)
        generators = [torch.Generator().manual_seed(seed) for seed in [*seeds[chunk]] + [seeds[start]] * fill]
        x = _denoise(net, diffusion, sampler, y, generators, shape, partial(on_step, start))
        images.append(x[:wanted].clamp(-1, 1).cpu())
    return torch.cat(images)


def _denoise(net, diffusion, sampler, y, generators, shape, on_step) -> Tensor:
    device, table = diffusion.tables.device, diffusion.table
    scheduler = sampler.build(table)
    times = times_of(scheduler, table)
    sizes = [*[size(table, t) for t in times], 1.0]
    x = torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(device) * sizes[0]
    for k, t in enumerate(times.to(device)):
        time = t.expand(len(y))
        x0_hat = diffusion.estimate_x0(diffusion.output(net, x, time, y), x, time)
        if sampler.clip_x0:
            x0_hat = x0_hat.clamp(-1, 1)
        x = sampler.step(scheduler, k, x0_hat, x, table, generators)
        on_step(k, x / sizes[k + 1])
    return x
