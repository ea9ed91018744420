"""Log a row to console, metrics.csv and loggers, and show the progress bar.

A row is due whenever an interval of the run ends: `log_every`, `val_every`,
`sample_every`...
"""

import logging
import math
from datetime import timedelta

import lightning as L
import torch

from diffusion_lit.distributed import collectives
from diffusion_lit.runs.metrics_file import MetricsFile
from diffusion_lit.system.console import progress_bar
from diffusion_lit.system.memory import peak_memory_gib
from diffusion_lit.training.callbacks.non_finite_guard import NonFiniteGuard
from diffusion_lit.training.callbacks.sample_metrics import SampleMetrics, columns_of
from diffusion_lit.training.callbacks.step_callback import StepCallback
from diffusion_lit.training.callbacks.step_validation import StepValidation
from diffusion_lit.training.ema import decay_at_step, relative_distance
from diffusion_lit.training.loggers.run_logger import RunLogger
from diffusion_lit.training.module import DiffusionModule
from diffusion_lit.training.noise_levels import BINS

log = logging.getLogger(__name__)

METRICS_CSV_COLUMNS = (
    [f"train/{name}" for name in ("loss", "lr", "grad_norm", "skipped", "ema_decay", "ema_distance")]
    + ["images_per_second", "seconds", "memory_gib"]
    + ["val/loss", "val/loss_raw", "val/error", "val/bits_per_dim"]
    + [f"val/{kind}_log_snr/{name}" for kind in ("ema", "raw") for name in BINS]
)


class MetricsLog(StepCallback):
    """Collects the row of a step and writes it on rank 0, before the checkpoint of the step is saved.

    Attributes:
        row: the last row.
    """

    def __init__(
        self, *shared, guard: NonFiniteGuard, validation: StepValidation, samples: SampleMetrics, logger: RunLogger
    ):
        super().__init__(*shared)
        self.guard, self.validation, self.samples, self.logger = guard, validation, samples, logger
        self.logged_step, self.logged_seconds = 0, 0.0
        self.row: dict[str, float] = {}
        self.next_rate: float | None = None
        self.resumed: dict = {}
        self.file: MetricsFile | None = None
        self.is_writer = collectives.rank() == 0
        self.bar = progress_bar(visible=self.is_writer)

    def state_dict(self) -> dict:
        """Return the clock, the start of the current row, and what is compared when the run is resumed."""
        self.clock.pause()  # saving is not training
        conditions = {"threads": torch.get_num_threads(), "rate": self.row.get("train/lr"), "next_rate": self.next_rate}
        row = {"logged_step": self.logged_step, "logged_seconds": self.logged_seconds}
        return {"seconds": self.clock.seconds} | row | conditions

    def load_state_dict(self, state: dict) -> None:
        """Restore the clock and the start of the current row."""
        self.clock.seconds = state["seconds"]
        self.logged_step, self.logged_seconds = state["logged_step"], state["logged_seconds"]
        self.resumed = state

    def on_train_start(self, trainer: L.Trainer, module: DiffusionModule) -> None:
        """Open metrics.csv, the loggers and the progress bar."""
        super().on_train_start(trainer, module)
        module.log_steps = False
        if self.is_writer:
            self.file = MetricsFile(self.run / "metrics.csv", METRICS_CSV_COLUMNS + columns_of(self.config), self.step)
            for note in describe_resumption(self.resumed, scheduled_rate(trainer), module.device.type):
                log.info("note       %s", note)
        self.logger.start(self.run, self.config, self.step)
        self.bar.start()
        self.task = self.bar.add_task("", total=trainer.max_steps, completed=self.step)
        self.clock.resume()

    def after_step(self, trainer: L.Trainer, module: DiffusionModule) -> None:
        """Log the row if anything is due."""
        self.bar.advance(self.task)
        self.next_rate = scheduled_rate(trainer)
        if not self.milestones.is_due():
            return
        self.row = self._training_row(trainer, module) | self.validation.row | self.samples.row
        module.log("train/loss", self.row["train/loss"], logger=False)  # for callbacks that monitor it
        if self.file and not self.file.add(self.step, self.row):
            log.warning("metrics.csv cannot be written; its rows are kept in memory until it can")
        self.logger.log_row(self.step, self.row)

    def _training_row(self, trainer: L.Trainer, module: DiffusionModule) -> dict[str, float]:
        totals, steps = self.guard.totals, self.step - self.logged_step
        if totals.skipped and self.is_writer and not self.guard.window.is_scaled:
            log.warning("skipped %d of the last %d steps, whose gradients were not finite", totals.skipped, steps)
        elapsed = max(1e-9, self.clock.seconds - self.logged_seconds)
        speed = steps * self.config["global_batch_size"] / elapsed
        self.logged_step, self.logged_seconds = self.step, self.clock.seconds
        self.guard.window.reset()
        summary = f"loss {totals.loss:.4f} | {speed:,.0f} img/s"
        self.bar.update(self.task, description=summary)
        seconds_left = (trainer.max_steps - self.step) * elapsed / max(1, steps)
        eta = str(timedelta(seconds=round(seconds_left))).removeprefix("0:")
        file_only = {"file_only": self.bar.console.is_terminal}
        log.info("step %d/%d | %s | ETA %s", self.step, trainer.max_steps, summary, eta, extra=file_only)
        return {
            "train/loss": totals.loss,
            "train/lr": module.learning_rate,
            "train/grad_norm": module.grad_norm.item(),
            "train/skipped": totals.skipped,
            "train/ema_decay": decay_at_step(module.decay, self.step) if module.decay else 0.0,
            "train/ema_distance": relative_distance(module.ema, module.net),
            "images_per_second": speed,
            "seconds": self.clock.seconds,
            "memory_gib": peak_memory_gib(module.device),
        }

    def close(self) -> None:
        """Stop the progress bar and close metrics.csv."""
        self.bar.stop()
        if self.file:
            self.file.close()
            self.file = None


def scheduled_rate(trainer: L.Trainer) -> float:
    """Return the learning rate of the next step."""
    return float(trainer.optimizers[0].param_groups[0]["lr"])


def describe_resumption(before: dict, rate: float, device: str) -> list[str]:
    """Return a line for each condition that makes a resumed run another one than an unbroken one.

    Args:
        before: state of `MetricsLog` in the checkpoint; {} for a new run.
        rate: learning rate of the next step.
        device: type of the device, "cpu" or "cuda".
    """
    lines, threads = [], torch.get_num_threads()
    if device == "cpu" and before.get("threads", threads) != threads:
        lines.append(
            f"{threads} CPU threads, {before['threads']} before: sums are rounded in another order, so losses differ "
            f"slightly from those of an unbroken run. OMP_NUM_THREADS={before['threads']} keeps them equal."
        )
    if before.get("next_rate") is not None and not math.isclose(before["next_rate"], rate, rel_tol=1e-6):
        last = before["rate"] or before["next_rate"]
        lines.append(
            f"the learning rate goes from {last:.1e} to {rate:.1e}: lr_schedule or optimizer.lr has changed, "
            "or max_steps, over which the schedule is stretched."
        )
    return lines
