"""Run Lightning's validation loop at the steps of the run."""

import logging
import math

import lightning as L

from diffusion_lit.training.callbacks.step_callback import StepCallback
from diffusion_lit.training.module import DiffusionModule

log = logging.getLogger(__name__)
NEVER = 2**62  # val_check_interval of the Trainer, because this callback starts the validation


class StepValidation(StepCallback):
    """Validates every `val_every` steps, at every checkpoint and after the last step.

    Lightning would validate after all callbacks of a step. Here validation comes first. The
    row of metrics.csv, the best checkpoint and the decision of a user's EarlyStopping are
    then part of the checkpoint of that step, and a killed and resumed run decides as an
    unbroken one.

    Attributes:
        row: losses of this step; empty if there was no validation.
        last: losses of the last validation, for result.json.
    """

    def __init__(self, *shared):
        super().__init__(*shared)
        self.row: dict[str, float] = {}
        self.last: dict[str, float | None] = {"val/loss": None, "val/error": None, "val/bits_per_dim": None}

    def state_dict(self) -> dict:
        """Return the losses of the last validation."""
        return self.last

    def load_state_dict(self, state: dict) -> None:
        """Restore the losses of the last validation."""
        self.last = dict(state)

    def on_train_start(self, trainer: L.Trainer, module: DiffusionModule) -> None:
        """Say which noise levels `val/error` leaves out."""
        super().on_train_start(trainer, module)
        if (empty := module.levels.empty) and trainer.datamodule.val is not None:
            bins = ", ".join(name.replace("_", " ") for name in empty)
            log.info("val/error  leaves out log SNR %s: the process has no such noise levels", bins)

    def after_step(self, trainer: L.Trainer, module: DiffusionModule) -> None:
        """Validate if it is due."""
        self.row = {}
        has_images = trainer.enable_validation and trainer.datamodule.val is not None
        if has_images and self.milestones.is_due("val_every", "checkpoint_every"):
            run_validation(trainer)
            self.row = module.val_losses
            self.last = {name: self.row[name] if math.isfinite(self.row[name]) else None for name in self.last}
        if trainer.should_stop:  # set by EarlyStopping, Timer, ...; Lightning would validate once more
            self.milestones.is_last, trainer.limit_val_batches = True, 0


def run_validation(trainer: L.Trainer) -> None:
    """Run the Trainer's validation loop now, as its training loop does between two batches."""
    connector = trainer._logger_connector
    first, trainer.validating = connector._first_loop_iter, True
    try:
        trainer.fit_loop.epoch_loop.val_loop.run()
    finally:
        trainer.training, connector._first_loop_iter = True, first
