"""Base class of the callbacks of a run, which act after optimizer steps, and the state that they share."""

import time
from dataclasses import dataclass
from pathlib import Path

import lightning as L

# ema_snapshot_every is not one of them: a snapshot has no row in metrics.csv, and the checkpoint of the last step
# holds the tracked EMAs
INTERVALS = ("log_every", "val_every", "sample_every", "checkpoint_every", "metrics_every")


@dataclass
class Milestones:
    """Says which of the `INTERVALS` of a run are due at the current step.

    Args:
        config: configuration of the run.
        step: the current optimizer step.
        is_last: whether the run ends with this step, which makes everything due.
    """

    config: dict
    step: int = 0
    is_last: bool = False

    def update(self, trainer: L.Trainer) -> None:
        """Take the step of the Trainer. It is the last one at `max_steps`, or if an earlier callback stops the run."""
        self.step = trainer.global_step
        self.is_last = self.step == trainer.max_steps or trainer.should_stop

    def is_due(self, *intervals: str) -> bool:
        """Return whether one of the intervals ends at this step; without arguments, whether any does."""
        return any(self._ends(name) for name in intervals or INTERVALS)

    def _ends(self, name: str) -> bool:
        every = self.config[name]
        if self.is_last:
            return name != "metrics_every" or bool(every)
        return bool(every) and self.step % every == 0


class Clock:
    """Counts the seconds of training over all starts of a run; paused while it validates, samples or saves."""

    def __init__(self):
        self.seconds, self.started = 0.0, None

    def resume(self) -> None:
        """Continue counting."""
        self.started = time.perf_counter() if self.started is None else self.started

    def pause(self) -> None:
        """Stop counting."""
        if self.started is not None:
            self.seconds, self.started = self.seconds + time.perf_counter() - self.started, None


class StepCallback(L.Callback):
    """Calls `after_step` once after each optimizer step, in the order of the Trainer's callbacks.

    It runs on every rank: write files only where `collectives.rank() == 0`, call
    collectives on all ranks or none, and let no rank raise alone
    (`distributed/consistency.py`).

    To add one, add a field to `RunCallbacks` and build it in `make_callbacks`,
    both in `diffusion_lit.training.build_run`. It cannot be named by
    `_target_`, because it takes the state that all share. It acts in runs of
    `train`, not with `trainer.fast_dev_run` or `plan=true`, and not in a
    Trainer of your own.

    Args:
        run: the run folder.
        config: configuration of the run.
        milestones: which intervals end at this step, shared by all callbacks; NonFiniteGuard,
            the first of them, updates it.
        clock: seconds of training, shared by all callbacks.
    """

    def __init__(self, run: Path, config: dict, milestones: Milestones, clock: Clock):
        self.run, self.config, self.milestones, self.clock = run, config, milestones, clock
        self.step = 0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Take the step from the checkpoint."""
        self.step = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs, batch, batch_idx: int) -> None:
        """Call `after_step` if this micro-batch ended an optimizer step."""
        if trainer.global_step != self.step:
            self.step = trainer.global_step
            self.after_step(trainer, module)

    def after_step(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Do what this callback does after `self.step` optimizer steps."""

    def close(self) -> None:
        """Release what the callback holds, at the end of training or after an error."""

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Close."""
        self.close()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        """Close."""
        self.close()
