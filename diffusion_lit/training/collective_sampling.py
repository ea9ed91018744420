"""Sampling by all ranks of a run, each a part, with the same result as one alone."""

import logging
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from diffusion_lit.config.secrets import format_exception
from diffusion_lit.distributed.collectives import map_across_ranks
from diffusion_lit.runs.build import guide_network
from diffusion_lit.runs.stored_config import GUIDANCE_KEYS
from diffusion_lit.sampling.generate import generate
from diffusion_lit.sampling.samplers import Sampler
from diffusion_lit.system.errors import UserError
from diffusion_lit.system.memory import is_out_of_memory
from diffusion_lit.training.module import DiffusionModule

log = logging.getLogger(__name__)


class SamplingStopped(Exception):
    """Raised by `on_step` to ask for the end in the middle of the work."""


@contextmanager
def continue_on_error(what: str) -> Iterator[None]:
    """Log what goes wrong inside, on all ranks alike, and go on."""
    try:
        yield
    except UserError:  # the second Ctrl-C
        raise
    except Exception as error:
        log.warning("%s failed, the run goes on: %s", what, format_exception(error))
        log.info(traceback.format_exc(), extra={"file_only": True})  # for the log file


@contextmanager
def eval_mode(*nets: nn.Module) -> Iterator[None]:
    """Put networks into evaluation mode, then back as they were."""
    modes = [net.training for net in nets]
    for net in nets:
        net.eval()
    try:
        yield
    finally:
        for net, mode in zip(nets, modes, strict=True):
            net.train(mode)


def generate_on_all_ranks(
    nets: Sequence[nn.Module],
    module: DiffusionModule,
    config: dict,
    sampler: Sampler,
    labels: Sequence[int],
    seeds: Sequence[int],
    on_step: Callable[[nn.Module, int, int, Tensor], None] = lambda net, first, k, x: None,
) -> list[Tensor] | None:
    """Return images uint8 (N, C, H, W) of each network, or None if any rank raised `SamplingStopped`.

    `on_step` is called as that of `generate`, with the network before its other arguments. Where memory is too small
    for `sampler.batch_size` images at a time, fewer are made.

    Raises:
        RuntimeError: on every rank, what went wrong on one.
    """
    parts = [slice(start, start + sampler.batch_size) for start in range(0, len(seeds), sampler.batch_size)]
    tasks, y = [(net, part) for net in nets for part in parts], module.condition.to_tensor(labels)

    def work(k: int) -> Tensor | None:
        net, part = tasks[k]

        def watch(first: int, step: int, x: Tensor) -> None:
            on_step(net, part.start + first, step, x)

        model = guide_network(net, module.condition, **{key: config[key] for key in GUIDANCE_KEYS})

        def make(batch_size: int) -> Tensor:
            fewer = replace(sampler, batch_size=batch_size)
            x = generate(model, module.diffusion, fewer, y[part], seeds[part], module.codec.shape, watch)
            return module.codec.decode(x)

        try:
            return _in_memory(make, sampler.batch_size)
        except SamplingStopped:
            return None
        except UserError:
            raise
        except Exception as error:  # the others wait for this rank's part
            return format_exception(error)

    with eval_mode(*nets):
        done = map_across_ranks(work, len(tasks))
    if failures := [what for what in done if isinstance(what, str)]:
        raise RuntimeError(failures[0])
    if any(images is None for images in done):
        return None
    return [torch.cat(done[k * len(parts) : (k + 1) * len(parts)]) for k in range(len(nets))]


def _in_memory(make: Callable[[int], Tensor], batch_size: int) -> Tensor:
    """make(batch_size), or of half as many until they fit."""
    while True:
        try:
            return make(batch_size)
        except Exception as error:
            if batch_size == 1 or not is_out_of_memory(error):
                raise
        batch_size = -(-batch_size // 2)  # out of the handler, which holds on to the tensors of the attempt
        log.warning("out of memory while sampling; now %d images at a time (sampler.batch_size)", batch_size)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
