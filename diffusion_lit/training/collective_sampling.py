"""Generate images on all ranks of a run, with the same result as on one.

Previews and metrics need many images in the middle of training. The batches of the
sampler are divided among the ranks and gathered again. An error on one rank must
not leave the others waiting, so it is gathered like a result and then raised on all
of them.
"""

import logging
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from diffusion_lit.config.secrets import format_exception
from diffusion_lit.distributed.collectives import map_across_ranks
from diffusion_lit.networks.compilation import run_eagerly
from diffusion_lit.runs.build import guide_network
from diffusion_lit.runs.stored_config import GUIDANCE_KEYS
from diffusion_lit.sampling.generate import generate
from diffusion_lit.sampling.labels import Label
from diffusion_lit.sampling.samplers import Sampler
from diffusion_lit.system.errors import UserError
from diffusion_lit.system.memory import is_out_of_memory
from diffusion_lit.training.module import DiffusionModule

log = logging.getLogger(__name__)


class SamplingStopped(Exception):
    """Raised by `on_step` to end the sampling early."""


@contextmanager
def continue_on_error(task: str) -> Iterator[None]:
    """Log an error of the block, which must occur on all ranks alike, and continue."""
    try:
        yield
    except UserError:  # the second Ctrl-C
        raise
    except Exception as error:
        log.warning("%s failed, the run continues: %s", task, format_exception(error))
        log.info(traceback.format_exc(), extra={"file_only": True})  # for the log file


@contextmanager
def eval_mode(*nets: nn.Module) -> Iterator[None]:
    """Put networks into evaluation mode inside the block."""
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
    labels: Sequence[Label],
    seeds: Sequence[int],
    on_step: Callable[[nn.Module, int, int, Tensor], None] = lambda net, first, k, x: None,
) -> list[Tensor] | None:
    """Return images of each network, uint8 (N, C, H, W), or None if any rank raised `SamplingStopped`.

    Where memory is too small for `sampler.batch_size` images at a time, the batch size is
    halved until they fit.

    Args:
        nets: the networks.
        module: module that provides diffusion, condition and codec.
        config: configuration of the run, for its guidance.
        sampler: the sampler.
        labels: label of each image, N.
        seeds: seed of each image, N.
        on_step: called after each sampler step as in `generate`, with the network before
            the other arguments.

    Raises:
        RuntimeError: on every rank, for an error on one.
    """
    sampler = sampler.with_steps(module.learned_steps)
    parts = [slice(start, start + sampler.batch_size) for start in range(0, len(seeds), sampler.batch_size)]
    tasks, y = [(net, part) for net in nets for part in parts], module.condition.to_tensor(labels)

    def run_task(k: int) -> Tensor | str | None:
        net, part = tasks[k]
        model = guide_network(net, module.condition, **{key: config[key] for key in GUIDANCE_KEYS})

        def watch(first: int, step: int, x: Tensor) -> None:
            on_step(net, part.start + first, step, x)

        def sample(batch_size: int) -> Tensor:
            fewer = replace(sampler, batch_size=batch_size)
            x = generate(model, module.diffusion, fewer, y[part], seeds[part], module.codec.shape, watch)
            return module.codec.decode(x)

        try:
            return _fit_in_memory(sample, sampler.batch_size)
        except SamplingStopped:
            return None
        except UserError:
            raise
        except Exception as error:
            return format_exception(error)

    with eval_mode(*nets), run_eagerly(*nets):
        results = map_across_ranks(run_task, len(tasks))
    if errors := [result for result in results if isinstance(result, str)]:
        raise RuntimeError(errors[0])
    if any(result is None for result in results):
        return None
    return [torch.cat(results[k * len(parts) : (k + 1) * len(parts)]) for k in range(len(nets))]


def _fit_in_memory(sample: Callable[[int], Tensor], batch_size: int) -> Tensor:
    """Return sample(batch_size); halve the batch size while memory is too small."""
    while True:
        try:
            return sample(batch_size)
        except Exception as error:
            if batch_size == 1 or not is_out_of_memory(error):
                raise
        batch_size = -(-batch_size // 2)  # outside the handler, which keeps the tensors of the attempt alive
        log.warning("out of memory while sampling; now %d images at a time (sampler.batch_size)", batch_size)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
