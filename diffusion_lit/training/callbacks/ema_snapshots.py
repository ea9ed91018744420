"""Write snapshots of the tracked EMAs, from which `ema_length` is computed after training (`runs/posthoc_ema.py`)."""

import logging

import lightning as L

from diffusion_lit.distributed import collectives
from diffusion_lit.runs import posthoc_ema
from diffusion_lit.system.errors import UserError
from diffusion_lit.training.callbacks.step_callback import StepCallback
from diffusion_lit.training.module import DiffusionModule

log = logging.getLogger(__name__)


class EmaSnapshots(StepCallback):
    """Writes a snapshot every `ema_snapshot_every` optimizer steps (0: never), on rank 0.

    It precedes the checkpoint callback, so that a checkpoint has all snapshots up to its
    step.
    """

    def on_train_start(self, trainer: L.Trainer, module: DiffusionModule) -> None:
        """Delete snapshots of steps after the checkpoint that the run resumes from."""
        super().on_train_start(trainer, module)
        if collectives.rank() == 0:
            posthoc_ema.remove_snapshots_after(self.run, self.step)

    def after_step(self, trainer: L.Trainer, module: DiffusionModule) -> None:
        """Write a snapshot if it is due. A full disk does not end the run: `ema_length` uses those that exist."""
        every = self.config["ema_snapshot_every"]
        if every and self.step % every == 0 and collectives.rank() == 0:
            try:
                posthoc_ema.save_snapshot(self.run, self.step, module.tracked_emas)
            except UserError as error:
                log.warning("%s", error)
