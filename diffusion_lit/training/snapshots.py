"""Snapshots of the averages that `ema_length` is made from later, see `diffusion_lit.runs.posthoc_ema`."""

import logging
from pathlib import Path

import lightning as L

from diffusion_lit.distributed import collectives
from diffusion_lit.runs import posthoc_ema
from diffusion_lit.system.errors import UserError
from diffusion_lit.training.module import DiffusionModule

log = logging.getLogger(__name__)


class Snapshots(L.Callback):
    """Writes one at every `every`-th optimizer step, on rank 0; never for 0.

    It comes before the Recorder: when there is a checkpoint, there are all snapshots up to its step.
    """

    def __init__(self, run: Path, every: int):
        self.run, self.every, self.step = run, every, 0

    def on_train_start(self, trainer: L.Trainer, module: DiffusionModule) -> None:
        self.step = trainer.global_step
        if collectives.rank() == 0:
            posthoc_ema.forget_after(self.run, self.step)

    def on_train_batch_end(self, trainer: L.Trainer, module: DiffusionModule, *_) -> None:
        before, self.step = self.step, trainer.global_step
        ends_step = self.step > before  # not every micro-batch does
        if self.every and ends_step and self.step % self.every == 0 and collectives.rank() == 0:
            try:
                posthoc_ema.write(self.run, self.step, module.averages)
            except UserError as error:  # a full disk may have room again; lengths are made from those that there are
                log.warning("%s", error)
