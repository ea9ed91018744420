"""The sampling loop."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor

from diffusion_lit.data.device_images import copy_to_device
from diffusion_lit.diffusion.loss import Diffusion, Network
from diffusion_lit.diffusion.seeds import Seed
from diffusion_lit.sampling.editing import Edit, initial_noise, renoise
from diffusion_lit.sampling.guidance import GuidanceInterval, select_network
from diffusion_lit.sampling.samplers import Sampler, scheduler_times, total_std

Value = TypeVar("Value")
OnStep = Callable[[int, int, Tensor], None]


@torch.no_grad()
def generate(
    net: Network | GuidanceInterval,
    diffusion: Diffusion,
    sampler: Sampler,
    y: Tensor | Sequence,
    seeds: Sequence[Seed],
    shape: tuple[int, int, int],
    on_step: OnStep = lambda first, k, x: None,
    edit: Edit | None = None,
) -> Tensor:
    """Return x float32 (N, C, H, W) on the CPU, for `Codec.decode`.

    Image k depends on `seeds[k]`, `y[k]` and in an edit on its original alone.
    Images are made `sampler.batch_size` at a time and the last chunk is filled
    up, because the last bits of a convolution depend on the batch size. Noise
    comes from one CPU generator per image, on every device; for a GPU that of
    the next chunk is drawn meanwhile.

    Args:
        net: network, with guidance if any.
        diffusion: process and prediction type that the network was trained with.
        sampler: see `diffusion_lit.sampling.samplers`.
        y: condition of each image, as `Condition.to_tensor` returns it, (N, ...).
        seeds: seed of each image.
        shape: (C, H, W) of x.
        on_step: called after every network evaluation with the index of the first image of the
            batch, that of the evaluation, and x (B, C, H, W) after it, scaled to unit variance.
        edit: change given images instead of starting from noise.
    """
    device = diffusion.coefficient_table.device
    y, images = torch.as_tensor(y), []

    def draw_noise(start: int) -> tuple[int, list[int], Tensor, list[torch.Generator]]:
        count = min(sampler.batch_size, len(seeds) - start)
        members = [*range(start, start + count)] + [start] * (sampler.batch_size - count)
        noise, generators = zip(*[initial_noise(seeds[k], shape) for k in members], strict=True)
        return start, members, torch.stack(noise), list(generators)

    starts = range(0, len(seeds), sampler.batch_size)
    for start, members, noise, generators in map_ahead(draw_noise, starts, is_threaded=device.type != "cpu"):
        x0 = _denoise(
            net,
            diffusion,
            sampler,
            y[members].to(device),
            copy_to_device(noise, device),
            generators=generators,
            edit=edit and edit.select(members, device),
            on_step=partial(on_step, start),
        )
        images.append(x0[: len(seeds) - start].cpu())
    return torch.cat(images)


def map_ahead(function: Callable[[int], Value], arguments: Iterable[int], is_threaded: bool) -> Iterator[Value]:
    """Yield function(argument) of each argument; with a thread, the next one is computed meanwhile."""
    if not is_threaded:
        yield from map(function, arguments)
        return
    with ThreadPoolExecutor(max_workers=1) as pool:
        iterator = iter(arguments)
        results = deque(pool.submit(function, argument) for argument in islice(iterator, 2))
        while results:
            yield results.popleft().result()
            results.extend(pool.submit(function, argument) for argument in islice(iterator, 1))


def _denoise(
    net: Network | GuidanceInterval,
    diffusion: Diffusion,
    sampler: Sampler,
    y: Tensor,
    x: Tensor,
    generators: list[torch.Generator],
    edit: Edit | None,
    on_step: Callable[[int, Tensor], None],
) -> Tensor:
    """Return x0 of unit noise x (B, C, H, W). The other arguments are those of a batch of `generate`."""
    process, reached = diffusion.process, 0  # x is at the level of step `reached`
    scheduler = sampler.build_scheduler(process)
    levels = scheduler_times(scheduler, process)
    stds = [*[total_std(process, t) for t in levels], 1.0]
    times = [*[t.expand(len(y)) for t in levels.to(x.device)], None]
    steps = edit.step_indices(len(levels)) if edit else range(len(levels))
    if steps[0] == 0:
        x = x * stds[0]
    for k in steps:
        if k > reached:  # an edit starts in the middle; until then x is unit noise
            x = diffusion.add_noise(edit.x0, times[k], x)
        if k < reached:  # an edit repeats a step
            x = renoise(x, diffusion, times[reached], times[k], generators)
        if k != reached:
            scheduler = sampler.build_scheduler(process, begin=k)
        out = diffusion.output(select_network(net, process, levels[k]), x, times[k], y)
        x0_hat = diffusion.estimate_x0(out, x, times[k])
        if sampler.clip_x0:
            x0_hat = x0_hat.clamp(-1, 1)
        x = sampler.step(scheduler, k, x0_hat, x, process, generators)
        reached = k + 1
        if edit:
            x = edit.restore_known(x, diffusion, times[reached], generators)
        on_step(k, x / stds[reached])
    return x
