"""Validation at steps of the run, by Lightning's own validation loop."""

import lightning as L

from diffusion_lit.training.callbacks.step import Milestones, StepCallback
from diffusion_lit.training.module import DiffusionModule

NEVER = 2**62  # val_check_interval of a Trainer whose validation this callback starts


class Validation(StepCallback):
    """Runs the validation loop every `val_every` steps, at every checkpoint and after the last step.

    Lightning would validate after all callbacks of a step. Here validation comes first: the row of metrics.csv, the
    best checkpoint and a user's EarlyStopping of a step are then part of the checkpoint of that step, and a run that is
    killed and resumed makes the same decisions as an unbroken one.
    """

    def __init__(self, milestones: Milestones):
        self.milestones = milestones
        self.row: dict[str, float] = {}  # of this step; empty if there was no validation
        self.last: dict[str, float | None] = {"val/loss": None, "val/error": None}

    def state_dict(self) -> dict:
        return self.last

    def load_state_dict(self, state: dict) -> None:
        self.last = dict(state)

    def after_step(self, trainer: L.Trainer, module: DiffusionModule) -> None:
        self.milestones.step = self.step
        self.milestones.is_last = self.step == trainer.max_steps or trainer.should_stop
        self.row = {}
        has_images = trainer.enable_validation and trainer.datamodule.val is not None
        if has_images and self.milestones.is_due("val_every", "checkpoint_every"):
            run_validation(trainer)
            self.row = module.val_row
            self.last = {name: self.row[name] for name in self.last}
        if trainer.should_stop:  # by EarlyStopping, a Timer...: Lightning would validate once more
            self.milestones.is_last, trainer.limit_val_batches = True, 0


def run_validation(trainer: L.Trainer) -> None:
    """Run the Trainer's validation loop now, as its training loop does between two batches."""
    connector = trainer._logger_connector
    first, trainer.validating = connector._first_loop_iter, True
    try:
        trainer.fit_loop.epoch_loop.val_loop.run()
    finally:
        trainer.training, connector._first_loop_iter = True, first
