"""Save the checkpoints of a run; keep the newest ones and the best."""

import logging
import math

import lightning as L

from diffusion_lit.distributed import collectives
from diffusion_lit.runs import checkpoints, run_lock
from diffusion_lit.runs.sweeps import HIGHER_IS_BETTER
from diffusion_lit.system.errors import DataError, Exit, UserError
from diffusion_lit.system.memory import is_out_of_memory
from diffusion_lit.training.callbacks.metrics_log import MetricsLog
from diffusion_lit.training.callbacks.non_finite_guard import last_checkpoint, record_step
from diffusion_lit.training.callbacks.step_callback import StepCallback
from diffusion_lit.training.ema import is_finite
from diffusion_lit.training.module import DiffusionModule

log = logging.getLogger(__name__)

MAX_FAILED_SAVES = 3  # in a row; then the run ends


class RunCheckpoints(StepCallback):
    """Saves every `checkpoint_every` steps; keeps the last `keep_checkpoints` and the best by `best_by`.

    It acts after the row of the step is written, so that everything due at a step exists
    when its checkpoint does. A killed and resumed run then leaves the same files as an
    unbroken one.

    Attributes:
        saved_step: step of the last checkpoint that was written.
    """

    def __init__(self, *shared, metrics: MetricsLog):
        super().__init__(*shared)
        self.metrics = metrics
        self.scores: dict[int, float] = {}  # `best_by` of the checkpoints that are kept, by step
        self.failed_saves = 0  # in a row
        self.saved_step = -1
        self.lock_file = None

    def state_dict(self) -> dict:
        """Return the scores."""
        return {"scores": self.scores}

    def load_state_dict(self, state: dict) -> None:
        """Restore the scores."""
        self.scores = dict(state["scores"])

    def on_load_checkpoint(self, trainer: L.Trainer, module: DiffusionModule, checkpoint: dict) -> None:
        """Align Lightning's progress with the step."""
        realign_progress(checkpoint, steps_per_epoch(trainer), trainer.accumulate_grad_batches)

    def on_train_start(self, trainer: L.Trainer, module: DiffusionModule) -> None:
        """Note that the checkpoint that the run resumes from is saved."""
        super().on_train_start(trainer, module)
        self.saved_step = self.step
        lock_file = self.run / ".lock"
        if collectives.rank() == 0 and lock_file.exists():
            self.lock_file = open(lock_file, "rb")  # noqa: SIM115 follows the folder if somebody moves it

    def after_step(self, trainer: L.Trainer, module: DiffusionModule) -> None:
        """Save if it is due. While steps are skipped nothing is saved, because a good checkpoint would be deleted."""
        if not self.milestones.is_due("checkpoint_every"):
            return
        score = self.metrics.row.get(self.config["best_by"], math.nan)
        if math.isfinite(score):
            self.scores[self.step] = score
        is_last = self.milestones.is_last
        if is_last or not self.metrics.guard.totals.non_finite_in_a_row:
            self.save(trainer, module, is_needed=is_last)

    def on_train_end(self, trainer: L.Trainer, module: DiffusionModule) -> None:
        """Save the last step if a callback after this one, such as a Timer, has ended the run."""
        self.step = trainer.global_step
        if self.saved_step != self.step:
            self.save(trainer, module, is_needed=True)

    def on_exception(self, trainer: L.Trainer, module: DiffusionModule, exception: BaseException) -> None:
        """Save the last complete step if memory ran out or an image is broken, in a run of one process.

        Other ranks would have to join in.
        """
        self.step = trainer.global_step  # a callback before this one may have failed
        is_alone = collectives.world_size() == 1
        is_saved = self.step in checkpoints.list_steps(self.run)
        is_intact = is_out_of_memory(exception) or isinstance(exception, DataError)
        if is_intact and is_alone and self.step and not (is_saved or module.is_updating):
            module.running_statistics.restore()
            self.save(trainer, module, is_needed=True)

    def save(self, trainer: L.Trainer, module: DiffusionModule, is_needed: bool) -> None:
        """Write the checkpoint of this step; then move the links and delete older files.

        If writing fails and the checkpoint is not needed now, the run continues and saves
        at the next interval: the disk may have room by then.

        Raises:
            UserError: exit 5 if somebody moved or deleted the run folder, after saving where
                it is now; exit 6 if a weight is not finite; exit 75 if a needed checkpoint, or
                the third in a row, fails.
        """
        place = self.run
        if self.lock_file and (moved := run_lock.find_moved_run(self.lock_file.fileno(), place)) != place:
            if moved is None:
                raise run_lock.describe_moved_run(place, None)
            self.run, is_needed = moved, True
        if not (is_finite(module.net) and is_finite(module.ema)):
            replay = record_step(self.run, self.config, self.step, trainer, module)
            message = f"at step {self.step} weights are not finite; {last_checkpoint(self.run)}.{replay}"
            raise UserError(Exit.NON_FINITE, message)
        steps = [*[step for step in checkpoints.list_steps(self.run) if step < self.step], self.step]
        scores = {step: score for step, score in self.scores.items() if step in steps}
        choose = max if self.config["best_by"] in HIGHER_IS_BETTER else min
        best = choose(scores, key=scores.get, default=None)
        keep = {*steps[-self.config["keep_checkpoints"] :], best}
        self.scores = {step: score for step, score in scores.items() if step in keep}
        trainer.save_checkpoint(checkpoints.checkpoint_path(self.run, self.step))  # rank 0 writes, the others wait
        error = trainer.strategy.checkpoint_io.error if collectives.rank() == 0 else None
        self.failed_saves = self.failed_saves + 1 if error else 0
        if error and (is_needed or self.failed_saves == MAX_FAILED_SAVES):
            raise error
        if error:
            self.scores = scores  # the files stay
            log.warning("%s\ntraining continues; will retry at the next checkpoint interval", error)
            return
        self.saved_step = self.step
        if collectives.rank() == 0:
            self._update_files(best, set(steps) - keep)
        if self.run != place:
            raise run_lock.describe_moved_run(place, self.run, f"at step {self.step}, saved")

    def _update_files(self, best: int | None, outdated: set[int]) -> None:
        path = checkpoints.checkpoint_path(self.run, self.step)
        try:
            checkpoints.link_checkpoint(path, "last.ckpt")
            if best is not None:
                checkpoints.link_checkpoint(checkpoints.checkpoint_path(self.run, best), "best.ckpt")
            for step in outdated:
                checkpoints.checkpoint_path(self.run, step).unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s is complete, but its links could not be updated: %s", path, error.strerror)


def steps_per_epoch(trainer: L.Trainer) -> int:
    """Return the optimizer steps of an epoch, which `limit_train_batches` may shorten."""
    batches, limit = len(trainer.datamodule.train_dataloader()), trainer.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    return batches // trainer.accumulate_grad_batches


def realign_progress(checkpoint: dict, steps_per_epoch: int, accumulate: int) -> None:
    """Derive Lightning's counters of batches and epochs in a checkpoint from its global step.

    The position in the stream of images is the step times the global batch size.
    The stored counters would resume in the middle of a step if `accumulate` or the
    number of processes has changed, or if the checkpoint was saved when memory ran
    out.
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
    if not done:  # the counters of an epoch start at 0
        for progress in (
            loop["epoch_loop.scheduler_progress"],
            *loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"].values(),
        ):
            progress["current"] |= dict.fromkeys(progress["current"], 0)
