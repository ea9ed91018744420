"""Snapshots of the tracked EMAs, from which `ema_length` is made after training, see `runs/posthoc_ema.py`."""

import logging
from pathlib import Path

import lightning as L

from diffusion_lit.distributed import collectives
from diffusion_lit.runs import posthoc_ema
from diffusion_lit.system.errors import UserError
from diffusion_lit.training.callbacks.step import StepCallback
from diffusion_lit.training.module import DiffusionModule

log = logging.getLogger(__name__)


class EmaSnapshots(StepCallback):
    """Writes one at every `every`-th optimizer step, on rank 0; never for 0.

    It comes before the checkpoints: when there is a checkpoint, there are all snapshots up to its step.
    """

    def __init__(self, run: Path, every: int):
        self.run, self.every = run, every

    def on_train_start(self, trainer: L.Trainer, module: DiffusionModule) -> None:
        super().on_train_start(trainer, module)
        if collectives.rank() == 0:
            posthoc_ema.remove_snapshots_after(self.run, self.step)

    def after_step(self, trainer: L.Trainer, module: DiffusionModule) -> None:
        if self.every and self.step % self.every == 0 and collectives.rank() == 0:
            try:
                posthoc_ema.save_snapshot(self.run, self.step, module.tracked_emas)
            except UserError as error:  # a full disk may have room again; lengths are made from those that there are
                log.warning("%s", error)
