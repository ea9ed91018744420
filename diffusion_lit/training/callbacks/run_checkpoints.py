"""Checkpoints of a run: the newest ones and the best, each complete or absent."""

import logging
import math
from pathlib import Path

import lightning as L

from diffusion_lit.distributed import collectives
from diffusion_lit.runs import checkpoints
from diffusion_lit.runs.sweeps import HIGHER_IS_BETTER
from diffusion_lit.system.errors import Exit, UserError
from diffusion_lit.system.memory import is_out_of_memory
from diffusion_lit.training import ema as averaging
from diffusion_lit.training.callbacks.metrics_log import MetricsLog
from diffusion_lit.training.callbacks.non_finite import last_checkpoint, record_step
from diffusion_lit.training.callbacks.step import Milestones, StepCallback
from diffusion_lit.training.module import DiffusionModule

log = logging.getLogger(__name__)

FAILED_SAVES = 3  # in a row, then a run ends


class RunCheckpoints(StepCallback):
    """Saves every `checkpoint_every` steps, keeps the last `keep_checkpoints` and the best by `best_by`.

    It comes after the row of the step is written: what a checkpoint's step promised exists when the checkpoint does, so
    a run that is killed and resumed leaves the same files as one that was not.

    Attributes:
        saved_step: step of the last checkpoint that was written.
    """

    def __init__(self, run: Path, config: dict, milestones: Milestones, metrics: MetricsLog):
        self.run, self.config, self.milestones, self.metrics = run, config, milestones, metrics
        self.scores: dict[int, float] = {}  # `best_by`, by step, of the checkpoints that are kept
        self.failed_saves = 0  # in a row
        self.saved_step = -1

    def state_dict(self) -> dict:
        return {"scores": self.scores}

    def load_state_dict(self, state: dict) -> None:
        self.scores = dict(state["scores"])

    def on_train_start(self, trainer: L.Trainer, module: DiffusionModule) -> None:
        super().on_train_start(trainer, module)
        self.saved_step = self.step

    def on_train_end(self, trainer: L.Trainer, module: DiffusionModule) -> None:
        self.step = trainer.global_step
        if self.saved_step != self.step:  # a callback behind this one has ended the run, a Timer for example
            self.save(trainer, module, is_needed=True)

    def on_load_checkpoint(self, trainer: L.Trainer, module: DiffusionModule, checkpoint: dict) -> None:
        realign_progress(checkpoint, steps_per_epoch(trainer), trainer.accumulate_grad_batches)

    def after_step(self, trainer: L.Trainer, module: DiffusionModule) -> None:
        if not self.milestones.is_due("checkpoint_every"):
            return
        score = self.metrics.row.get(self.config["best_by"], math.nan)
        if math.isfinite(score):
            self.scores[self.step] = score
        is_last = self.milestones.is_last
        if is_last or not self.metrics.guard.totals.in_a_row:  # else a good one would go for it
            self.save(trainer, module, is_needed=is_last)

    def on_exception(self, trainer: L.Trainer, module: DiffusionModule, exception: BaseException) -> None:
        self.step = trainer.global_step  # a callback before this one may have failed
        is_alone = collectives.world_size() == 1  # others would wait for their part of a save
        is_saved = self.step in checkpoints.list_steps(self.run)
        if is_out_of_memory(exception) and is_alone and self.step and not (is_saved or module.in_update):
            module.forget_step()
            self.save(trainer, module, is_needed=True)

    def save(self, trainer: L.Trainer, module: DiffusionModule, is_needed: bool) -> None:
        """Write the checkpoint of this step; only then the links move and older files go.

        One that cannot be written is tried again at the next interval, unless it is needed now: the disk may have room
        by then, and the run goes on.

        Raises:
            UserError: exit 6 if a weight is not finite; exit 75 if a needed checkpoint, or the third in a row, fails.
        """
        if not (averaging.all_finite(module.net) and averaging.all_finite(module.ema)):
            hint = last_checkpoint(self.run) + record_step(self.run, self.config, self.step, trainer, module)
            raise UserError(Exit.NON_FINITE, f"at step {self.step} weights are not finite; {hint}")
        older = [step for step in checkpoints.list_steps(self.run) if step < self.step]
        steps = [*older, self.step]
        measured = {step: score for step, score in self.scores.items() if step in steps}
        first = max if self.config["best_by"] in HIGHER_IS_BETTER else min
        best = first(measured, key=measured.get, default=None)
        keep = {*steps[-self.config["keep_checkpoints"] :], best}
        self.scores = {step: score for step, score in measured.items() if step in keep}
        path = checkpoints.checkpoint_path(self.run, self.step)
        trainer.save_checkpoint(path)  # by rank 0; the others wait
        error = trainer.strategy.checkpoint_io.error if collectives.rank() == 0 else None
        self.failed_saves = self.failed_saves + 1 if error else 0
        if error and (is_needed or self.failed_saves == FAILED_SAVES):
            raise error
        if error:
            log.warning("%s\ntraining goes on; will retry at the next checkpoint interval", error)
        else:
            self.saved_step = self.step
        if error or collectives.rank():
            return
        try:
            checkpoints.link_checkpoint(path, "last.ckpt")
            if best is not None:
                checkpoints.link_checkpoint(checkpoints.checkpoint_path(self.run, best), "best.ckpt")
            for step in set(older) - keep:
                checkpoints.checkpoint_path(self.run, step).unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s is complete, but links beside it could not be moved: %s", path, error.strerror)


def steps_per_epoch(trainer: L.Trainer) -> int:
    """Return the optimizer steps of an epoch, with `limit_train_batches`."""
    batches, limit = len(trainer.datamodule.train_dataloader()), trainer.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    return batches // trainer.accumulate_grad_batches


def realign_progress(checkpoint: dict, steps_per_epoch: int, accumulate: int) -> None:
    """Set Lightning's counters of batches and epochs in a checkpoint from its global step alone.

    The position in the stream of images is the step times the global batch size. A run may go on with another
    `accumulate` or number of processes, and a checkpoint saved when memory ran out is of the middle of a step: in both
    cases the counters that were saved would begin in the middle of a step.
    """
    step, loop = checkpoint["global_step"], checkpoint["loops"]["fit_loop"]
    epoch, done = divmod(step, steps_per_epoch)
    counts = {"total": step * accumulate, "current": done * accumulate}
    loop["epoch_loop.batch_progress"] |= {"is_last_batch": False}
    for name, count in counts.items():
        loop["epoch_loop.batch_progress"][name] |= dict.fromkeys(("ready", "started", "processed", "completed"), count)
        begun = epoch + (done > 0)
        loop["epoch_progress"][name] |= {"ready": begun, "started": begun, "processed": epoch, "completed": epoch}
    loop["epoch_loop.state_dict"]["_batches_that_stepped"] = step
    if not done:  # a new epoch counts from 0
        for progress in (
            loop["epoch_loop.scheduler_progress"],
            *loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"].values(),
        ):
            progress["current"] |= dict.fromkeys(progress["current"], 0)
