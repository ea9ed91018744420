"""The denoising loop."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from diffusion_lit.diffusion.process import Diffusion, Network
from diffusion_lit.sampling.guidance import Within, at
from diffusion_lit.sampling.labels import Label
from diffusion_lit.sampling.samplers import Sampler

OnStep = Callable[[int, int, Tensor], None]  # (first image of the chunk, step done, x (B, C, H, W) after it)


@torch.no_grad()
def generate(
    net: Network | Within,
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
    device = diffusion.alpha.device
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
    device = diffusion.alpha.device
    scheduler = sampler.build(diffusion.table)
    x = torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(device)
    for k, t in enumerate(scheduler.timesteps.tolist()):
        time = torch.full((len(y),), t, device=device)
        x0_hat = diffusion.estimate_x0(diffusion.output(at(net, diffusion, time), x, time, y), x, time)
        if sampler.clip_x0:
            x0_hat = x0_hat.clamp(-1, 1)
        x = sampler.step(scheduler, k, x0_hat, x, diffusion.table, generators)
        on_step(k, x)
    return x
