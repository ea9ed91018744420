"""The one callback: after an optimizer step it logs, validates, draws a preview and saves, in this order.

The order matters: whatever a checkpoint's step promised (its row, its grid, its held-out loss) exists when the
checkpoint does, so a run that is killed and resumed leaves the same files as one that was not.
"""

import logging
import math
import os
import signal
import time
from pathlib import Path

import lightning as L

from diffusion_lit.distributed import collectives, process_group
from diffusion_lit.runs import checkpoints
from diffusion_lit.runs.metrics_file import MetricsFile
from diffusion_lit.runs.sweeps import HIGHER_IS_BETTER
from diffusion_lit.sampling.samplers import Sampler
from diffusion_lit.system.console import progress_bar
from diffusion_lit.system.errors import ENDING, HEARD, SAVING, Exit, UserError
from diffusion_lit.system.memory import is_out_of_memory, peak_memory_gib
from diffusion_lit.training import ema as averaging
from diffusion_lit.training import flight
from diffusion_lit.training.loggers.base import Shielded
from diffusion_lit.training.module import DiffusionModule
from diffusion_lit.training.preview import draw_preview, grid_of
from diffusion_lit.training.probe import BINS, Probe
from diffusion_lit.training.quality import Quality, columns_of
from diffusion_lit.training.shared import held_out, not_fatal
from diffusion_lit.training.window import Totals, Window

log = logging.getLogger(__name__)

COLUMNS = (
    ["loss", "lr", "grad_norm", "skipped", "ema_decay", "ema_distance", "images_per_second", "seconds", "memory_gib"]
    + ["val_loss", "val_loss_raw", "val_error"]
    + [f"val_ema_snr{name}" for name in BINS]
    + [f"val_raw_snr{name}" for name in BINS]
)

KEPT = ("seconds", "val_loss", "val_error", "scores", "logged_step", "logged_seconds")  # over a stop and a resume
FAILED_SAVES = 3  # in a row, then a run ends
SIGNALS = (*ENDING, *SAVING)
EVERY = ("log_every", "val_every", "sample_every", "checkpoint_every", "metrics_every")


def ends_run(number: int) -> bool:
    """Whether a signal ends the run when it has saved. SIGUSR1 does only where a job can be queued again: under SLURM,
    which sends it some time before the job's end (--signal=USR1@120)."""
    return number != 0 and (number not in SAVING or "SLURM_JOB_ID" in os.environ)


class Recorder(L.Callback):
    """Keeps the record of a run. Every rank has one; what they do together is agreed on, only rank 0 writes.

    Args:
        run: the run folder.
        sampler: of the previews.
        config: the run's configuration.
        logger: is given every row and every picture.

    After `fit`: `step`, `seconds` (of training alone, over all starts of the run), `val_loss` and `val_error` (EMA,
    None if nothing is held out) and `ended_by` (the signal that ended the run, or None).
    """

    def __init__(self, run: Path, sampler: Sampler, config: dict, logger: Shielded):
        self.run, self.sampler, self.config, self.logger = run, sampler, config, logger
        self.step, self.seconds = 0, 0.0
        self.logged_step, self.logged_seconds = 0, 0.0  # of the last row
        self.carried: list | None = None  # state of the `window`, the steps since the last row, in a checkpoint
        self.handlers: dict = {}  # of signals, as they were before
        self.val_loss: float | None = None
        self.val_error: float | None = None
        self.scores: dict[int, float] = {}  # `best_by`, by step, of the checkpoints that are kept
        self.signal = 0  # that this rank has heard
        self.ended_by: int | None = None
        self.failed_saves = 0  # in a row
        self.metrics: MetricsFile | None = None
        self.probe: Probe | None = None
        self.quality: Quality | None = None
        self.writes = collectives.rank() == 0
        self.bar = progress_bar(shown=self.writes)

    def state_dict(self) -> dict:
        return {name: getattr(self, name) for name in KEPT} | {"window": self.window.state()}

    def load_state_dict(self, state: dict) -> None:
        self.carried = state.get("window")  # a run may be older than it, and then begins a row anew
        state = {"scores": state.get("val_losses")} | state  # its older name
        for name in KEPT:
            setattr(self, name, state[name])

    # ------------------------------------------------------------------------------------------------ hooks

    def on_train_start(self, trainer: L.Trainer, module: DiffusionModule) -> None:
        self.handlers = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        for number in HEARD[:1]:
            self._on_signal(number, None)
        self.step = trainer.global_step
        columns = COLUMNS + columns_of(self.config)
        self.metrics = MetricsFile(self.run / "metrics.csv", columns, self.step) if self.writes else None
        self.logger.start(self.run, self.config, self.step)
        val = trainer.datamodule.val
        self.probe = Probe(val, module.diffusion) if val is not None else None
        if self.config["metrics_every"]:
            self.quality = Quality(self.config, trainer.datamodule, module, self.sampler)
        self.window = Window(self.config["strategy"], module.device, self.carried)
        if self.step and self._is_due("sample_every"):
            self.draw_missing(module)
        self.bar.start()
        self.task = self.bar.add_task("", total=trainer.max_steps, completed=self.step)
        self.started = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, module: DiffusionModule, outputs, batch, batch_idx: int) -> None:
        self.window.add(outputs["loss"])  # already divided by the micro-batches of a step
        if trainer.global_step == self.step:
            return
        self.window.end_step(module.skipped)
        self.step = trainer.global_step
        self.bar.advance(self.task)
        end = self.step == trainer.max_steps
        due = {name for name in EVERY if self._is_due(name) or (end and (name != "metrics_every" or self.quality))}
        if due or collectives.all_reduce_max(self.signal):
            self._milestone(trainer, module, due)

    def on_train_end(self, trainer: L.Trainer, module: DiffusionModule) -> None:
        self._close()

    def on_exception(self, trainer: L.Trainer, module: DiffusionModule, exception: BaseException) -> None:
        alone = collectives.world_size() == 1  # others would wait for their part of a save
        saved = self.step in checkpoints.steps_of(self.run)
        if is_out_of_memory(exception) and alone and self.step and not (saved or module.in_update):
            module.forget_step()
            self._save(trainer, module, needed=True)
        self._close()

    # ------------------------------------------------------------------------------------------------ milestones

    def _milestone(self, trainer: L.Trainer, module: DiffusionModule, due: set[str]) -> None:
        totals = self.window.totals()  # waits for the device, hence before the clock
        self.seconds += time.perf_counter() - self.started
        if totals.in_a_row > self.config["max_skipped_steps"]:
            raise self._not_finite(trainer, module, totals)
        if due:
            row = self._training_row(trainer, module, totals)
            if self.probe and due & {"val_every", "checkpoint_every"}:
                row |= self._validate(module)
            if "metrics_every" in due:
                with not_fatal(f"measuring samples of step {self.step}"):
                    row |= self.quality.measure(module)
            if math.isfinite(score := row.get(self.config["best_by"], math.nan)):
                self.scores[self.step] = score
            if self.metrics and not self.metrics.add(self.step, row):
                log.warning("metrics.csv cannot be written; its rows are kept until it can")
            self.logger.scalars(self.step, row)
        end = self.step == trainer.max_steps
        save = "checkpoint_every" in due and (end or not totals.in_a_row)  # else a good one would go for it
        if save:  # before the preview, which is long: who is killed in it goes on from here
            self._save(trainer, module, needed=end)
        if "sample_every" in due:
            self.preview(module)
        heard = collectives.all_reduce_max(self.signal)
        ends = ends_run(heard)
        if heard and not (save and collectives.broadcast_from_rank_zero(not self.failed_saves)):
            self._save(trainer, module, needed=ends)
        if ends:
            self.ended_by, trainer.should_stop = heard, True
        elif heard == self.signal:
            self.signal = 0  # saved, as it asked
        self.started = time.perf_counter()

    def _is_due(self, name: str) -> bool:
        return bool(self.config[name]) and self.step % self.config[name] == 0

    def _training_row(self, trainer: L.Trainer, module: DiffusionModule, totals: Totals) -> dict:
        loss, steps = totals.loss, self.step - self.logged_step
        if totals.skipped and self.writes and not self.window.scaled:
            log.warning("steps skipped, their gradient was not finite: %d of the last %d", totals.skipped, steps)
        speed = steps * self.config["global_batch_size"] / max(1e-9, self.seconds - self.logged_seconds)
        self.logged_step, self.logged_seconds = self.step, self.seconds
        self.window.begin()
        self.bar.update(self.task, description=f"loss {loss:.4f}  {speed:,.0f} img/s")
        in_bar = {"in_bar": self.bar.console.is_terminal}
        log.info("step %d/%d  loss %.4f  %s img/s", self.step, trainer.max_steps, loss, f"{speed:,.0f}", extra=in_bar)
        return {
            "loss": loss,
            "lr": module.learning_rate,
            "grad_norm": module.grad_norm.item(),
            "skipped": totals.skipped,
            "ema_decay": module.decay(self.step - 1) if module.decay else 0.0,
            "ema_distance": averaging.distance(module.ema, module.net),
            "images_per_second": speed,
            "seconds": self.seconds,
            "memory_gib": peak_memory_gib(module.device),
        }

    def _validate(self, module: DiffusionModule) -> dict:
        row = {}
        raw, ema = held_out([module.net, module.ema], self.probe)
        for (loss, bins, error), kind, loss_name in ((raw, "raw", "val_loss_raw"), (ema, "ema", "val_loss")):
            row[loss_name], row["val_error"] = loss, error  # the average's is the last and stays
            row |= dict(zip([f"val_{kind}_snr{name}" for name in BINS], bins, strict=True))
        self.val_loss, self.val_error = row["val_loss"], row["val_error"]
        return row

    def preview(self, module: DiffusionModule) -> None:
        """What goes wrong with a picture ends no run."""
        with not_fatal(f"the preview of step {self.step}"):
            draw_preview(
                self.run, self.step, module, self.sampler, self.logger, lambda: ends_run(self.signal), self.bar
            )

    def draw_missing(self, module: DiffusionModule) -> None:
        """The preview of this step, if a signal cut it short and the run was saved without it."""
        if not collectives.broadcast_from_rank_zero(grid_of(self.run, self.step).exists()):
            self.preview(module)

    def _save(self, trainer: L.Trainer, module: DiffusionModule, needed: bool) -> None:
        """The new checkpoint first; only then the links move and older files go.

        One that cannot be written is tried again at the next milestone, unless it is `needed` now: the disk may have
        room by then, and the run goes on.
        """
        if not (averaging.all_finite(module.net) and averaging.all_finite(module.ema)):
            told = self.last_checkpoint() + flight.record(self.run, self.step, trainer, module)
            raise UserError(Exit.NON_FINITE, f"at step {self.step} weights are not finite; {told}")
        older = [step for step in checkpoints.steps_of(self.run) if step < self.step]
        steps = [*older, self.step]
        measured = {step: score for step, score in self.scores.items() if step in steps}
        first = max if self.config["best_by"] in HIGHER_IS_BETTER else min
        best = first(measured, key=measured.get, default=None)
        keep = {*steps[-self.config["keep_checkpoints"] :], best}
        self.scores = {step: score for step, score in measured.items() if step in keep}
        path = checkpoints.path_of(self.run, self.step)
        trainer.save_checkpoint(path)  # by rank 0; the others wait
        if not self.writes:
            return
        error = trainer.strategy.checkpoint_io.error
        self.failed_saves = self.failed_saves + 1 if error else 0
        if error and (needed or self.failed_saves == FAILED_SAVES):
            raise error
        if error:
            log.warning("%s\ntraining goes on; the next checkpoint is tried at its time", error)
            return
        try:
            checkpoints.link(path, "last.ckpt")
            if best is not None:
                checkpoints.link(checkpoints.path_of(self.run, best), "best.ckpt")
            for step in set(older) - keep:
                checkpoints.path_of(self.run, step).unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s is whole, but links beside it could not be moved: %s", path, error.strerror)

    # ------------------------------------------------------------------------------------------------ ends

    def _not_finite(self, trainer: L.Trainer, module: DiffusionModule, totals: Totals) -> UserError:
        told = flight.record(self.run, self.step, trainer, module)
        return UserError(
            Exit.NON_FINITE,
            f"by step {self.step} the loss is {totals.loss} and the norm of the gradient {module.grad_norm.item()}, "
            f"{totals.in_a_row} steps in a row; {self.last_checkpoint()}. "
            f"Try a lower optimizer.lr, a longer optimizer.warmup_steps or strategy.precision=32-true{told}",
        )

    def last_checkpoint(self) -> str:
        """In words."""
        steps = checkpoints.steps_of(self.run)
        return f"the last good checkpoint is step {steps[-1]}" if steps else "there is no checkpoint yet"

    def _on_signal(self, number: int, frame) -> None:
        if ends_run(self.signal) and number == signal.SIGINT:
            raise UserError(Exit.SIGINT, f"stopped at once; {self.last_checkpoint()}")
        self.signal = number if ends_run(number) else self.signal or number  # one that only saves takes no end back
        process_group.tell_others(number)
        then = "" if ends_run(self.signal) else ", then going on"
        log.info("%s: finishing this step and saving%s", signal.Signals(number).name, then)

    def _close(self) -> None:
        self.bar.stop()
        if self.metrics:
            self.metrics.close()
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
