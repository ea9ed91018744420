"""End a run whose loss or gradient stays non-finite, and record its last step for `replay`."""

import logging
from pathlib import Path
from typing import NamedTuple

import lightning as L
import torch
from torch import Tensor

from diffusion_lit.config.overrides import format_command, format_override
from diffusion_lit.diffusion.randomness import draw_random_numbers
from diffusion_lit.distributed import collectives
from diffusion_lit.runs import checkpoints, step_record
from diffusion_lit.runs.run_dir import display_path
from diffusion_lit.system.errors import Exit, UserError
from diffusion_lit.training.callbacks.step_callback import StepCallback
from diffusion_lit.training.module import DiffusionModule

log = logging.getLogger(__name__)


class NonFiniteGuard(StepCallback):
    """Counts losses and skipped steps, and ends the run after more than `max_skipped_steps` non-finite ones in a row.

    Attributes:
        totals: loss and counts since the last row of metrics.csv, read when something is due.
    """

    def __init__(self, *shared):
        super().__init__(*shared)
        self.window_state: list | None = None
        self.totals: Totals | None = None

    def state_dict(self) -> dict:
        """Return the sums since the last row."""
        return {"window": self.window.state()}

    def load_state_dict(self, state: dict) -> None:
        """Restore the sums since the last row."""
        self.window_state = state["window"]

    def on_train_start(self, trainer: L.Trainer, module: DiffusionModule) -> None:
        """Put the sums on the device."""
        super().on_train_start(trainer, module)
        self.window = LossWindow(self.config["strategy"], module.device, self.window_state)

    def on_train_batch_end(self, trainer: L.Trainer, module: DiffusionModule, outputs, batch, batch_idx: int) -> None:
        """Add the loss of the micro-batch."""
        self.window.add(outputs["loss"])  # Lightning has divided it by accumulate_grad_batches
        super().on_train_batch_end(trainer, module, outputs, batch, batch_idx)

    def after_step(self, trainer: L.Trainer, module: DiffusionModule) -> None:
        """Add the step; if something is due, read the totals and end a run whose steps stay non-finite."""
        self.window.end_step(module.is_skipped)
        self.milestones.update(trainer)
        if not self.milestones.is_due():
            return
        self.totals = self.window.totals()  # waits for the device, so before the clock stops
        self.clock.pause()
        if self.totals.non_finite_in_a_row > self.config["max_skipped_steps"]:
            raise self._non_finite_error(trainer, module)

    def _non_finite_error(self, trainer: L.Trainer, module: DiffusionModule) -> UserError:
        totals, replay = self.totals, record_step(self.run, self.config, self.step, trainer, module)
        return UserError(
            Exit.NON_FINITE,
            f"at step {self.step} the loss is {totals.loss} and the gradient norm {module.grad_norm.item()}, "
            f"non-finite for {totals.non_finite_in_a_row} steps in a row; {last_checkpoint(self.run)}. "
            f"Try a lower optimizer.lr, a longer lr_schedule.warmup_steps or strategy.precision=32-true.{replay}",
        )


def last_checkpoint(run: Path) -> str:
    """Return the last checkpoint of a run, as part of a message."""
    steps = checkpoints.list_steps(run)
    return f"the last good checkpoint is step {steps[-1]}" if steps else "there is no checkpoint yet"


def record_step(run: Path, config: dict, step: int, trainer: L.Trainer, module: DiffusionModule) -> str:
    """Write the record of an optimizer step on rank 0 and return the sentence on how to inspect it.

    A student leaves no record, and "" is returned. The other ranks wait, or they would
    seem to be lost. No error of the recording is raised: the run ends with its own
    message even if the disk is full.
    """
    hint = ""
    if collectives.rank() == 0 and not config.get("distill"):  # `replay` knows no teacher
        try:
            data = trainer.datamodule
            batch = data.global_batch(step - 1)
            position, count = batch["position"], len(batch["index"])
            draws = draw_random_numbers(module.seed, position, count, module.codec.shape, module.device, module.strata)
            record = step_record.make_step_record(step, module.config_text, module.net, batch, draws, data.batch_size)
            checkpoints.save_checkpoint(record, run / step_record.RECORD_FILE)
            hint = f" To see where it began: {format_command('replay', format_override('run', display_path(run)))}"
            with trainer.precision_plugin.forward_context():
                forward = step_record.trace_forward(module.net, module.diffusion, config, record)
            step_record.write_step_summary(run, record, forward)
        except Exception as error:
            log.warning("the record of step %d is incomplete: %s", step, error)
    collectives.all_reduce_max(0)  # a barrier
    return hint


class Totals(NamedTuple):
    """Loss and counts of all ranks since the last row.

    Attributes:
        loss: mean of the finite losses; NaN if there are none.
        skipped: number of skipped steps.
        non_finite_in_a_row: number of non-finite steps up to now without a finite one between.
    """

    loss: float
    skipped: int
    non_finite_in_a_row: int


class LossWindow:
    """Losses and skipped steps since the last row of metrics.csv, without a host sync in every step.

    The sums stay on the device and are read only when a row is due: `.item()` in
    every step would make the CPU wait.

    Args:
        strategy: the `strategy` group. With precision 16-mixed the GradScaler skips steps
            while it searches its scale; these do not count as non-finite steps in a row.
        device: device of the sums.
        state: from a checkpoint, [sum of losses, steps with a finite loss, skipped, in a
            row] of each rank, or None.
    """

    def __init__(self, strategy: dict, device: torch.device, state: list[list[float]] | None = None):
        self.accumulate, self.is_scaled = strategy["accumulate"], strategy["precision"] == "16-mixed"
        loss, finite, skipped, non_finite_in_a_row = _state_of_rank(state) if state else [0.0] * 4
        sums = torch.tensor([loss, finite * self.accumulate, skipped, non_finite_in_a_row], device=device)
        self.loss, self.finite, self.skipped, self.non_finite_in_a_row = sums.unbind()
        self._reset_step()

    def add(self, loss: Tensor) -> None:
        """Add the loss of a micro-batch, divided by the number of micro-batches in a step."""
        is_finite = loss.isfinite()
        self.step_loss = self.step_loss + torch.where(is_finite, loss, 0.0)
        self.step_finite = self.step_finite + is_finite
        self.has_non_finite_loss = self.has_non_finite_loss | ~is_finite

    def end_step(self, is_skipped: Tensor) -> None:
        """Add the sums of the step. `is_skipped`: bool (), on the device."""
        self.loss, self.finite = self.loss + self.step_loss, self.finite + self.step_finite
        self.skipped = self.skipped + is_skipped
        is_non_finite = self.has_non_finite_loss if self.is_scaled else self.has_non_finite_loss | is_skipped
        self.non_finite_in_a_row = torch.where(is_non_finite, self.non_finite_in_a_row + 1, 0)
        self._reset_step()

    def totals(self) -> Totals:
        """Return the totals. Waits for the device and for the other ranks."""
        losses, steps, skipped, non_finite_in_a_row = zip(*self.state(), strict=True)
        mean = sum(losses) / sum(steps) if sum(steps) else float("nan")
        return Totals(mean, int(max(skipped)), int(max(non_finite_in_a_row)))

    def reset(self) -> None:
        """Start the next row; the count of non-finite steps in a row continues."""
        self.loss, self.finite, self.skipped = torch.zeros(3, device=self.loss.device).unbind()

    def state(self) -> list[list[float]]:
        """Return the state of each rank, see `state` above; the same on every rank."""
        loss, finite, *steps = torch.stack([self.loss, self.finite, self.skipped, self.non_finite_in_a_row]).tolist()
        return collectives.all_gather([loss, finite / self.accumulate, *steps])

    def _reset_step(self) -> None:
        zeros = torch.zeros(2, device=self.loss.device)
        self.step_loss, self.step_finite = zeros.unbind()
        self.has_non_finite_loss = torch.zeros((), dtype=torch.bool, device=self.loss.device)


def _state_of_rank(state: list[list[float]]) -> list[float]:
    """Return the state of this rank; with another number of ranks than before, mean sums and maximum counts."""
    if len(state) == collectives.world_size():
        return state[collectives.rank()]
    losses, steps, skipped, non_finite_in_a_row = zip(*state, strict=True)
    return [sum(losses) / len(state), sum(steps) / len(state), max(skipped), max(non_finite_in_a_row)]
