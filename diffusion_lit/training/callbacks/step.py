"""What the callbacks of a run have in common: they act after optimizer steps, one after the other."""

import time
from dataclasses import dataclass

import lightning as L

INTERVALS = ("log_every", "val_every", "sample_every", "checkpoint_every", "metrics_every")


@dataclass
class Milestones:
    """Which of the intervals of a run end with the step that was just made.

    Args:
        config: configuration of the run.
    """

    config: dict
    step: int = 0
    is_last: bool = False  # the run ends with this step: everything is due

    def is_due(self, *intervals: str) -> bool:
        """Return whether one of the intervals ends here; without arguments, whether any does."""
        return any(self._ends(name) for name in intervals or INTERVALS)

    def _ends(self, name: str) -> bool:
        every = self.config[name]
        if self.is_last:
            return name != "metrics_every" or bool(every)
        return bool(every) and self.step % every == 0


class Clock:
    """Seconds of training alone, over all starts of a run: paused while a callback validates, samples or saves."""

    def __init__(self):
        self.seconds, self.started = 0.0, None

    def resume(self) -> None:
        self.started = time.perf_counter() if self.started is None else self.started

    def pause(self) -> None:
        if self.started is not None:
            self.seconds, self.started = self.seconds + time.perf_counter() - self.started, None


class StepCallback(L.Callback):
    """Calls `after_step` once after each optimizer step, in the order of the Trainer's callbacks."""

    step = 0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.step = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs, batch, batch_idx: int) -> None:
        if trainer.global_step != self.step:  # not every micro-batch ends a step
            self.step = trainer.global_step
            self.after_step(trainer, module)

    def after_step(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Do what this callback does after `self.step` optimizer steps."""
