"""The end of a run whose loss or gradient stays non-finite, and the record of its last step."""

import logging
from pathlib import Path

import lightning as L

from diffusion_lit.config.overrides import format_command, format_override
from diffusion_lit.diffusion.randomness import draw_random_numbers
from diffusion_lit.distributed import collectives
from diffusion_lit.runs import checkpoints, step_record
from diffusion_lit.runs.run_dir import display_path
from diffusion_lit.system.errors import Exit, UserError
from diffusion_lit.training.callbacks.step import Clock, Milestones, StepCallback
from diffusion_lit.training.loss_window import LossWindow, Totals
from diffusion_lit.training.module import DiffusionModule

log = logging.getLogger(__name__)


class NonFiniteGuard(StepCallback):
    """Counts losses and skipped steps, and ends the run after more than `max_skipped_steps` non-finite ones in a row.

    Attributes:
        totals: sums since the last row of metrics.csv, read where something is due.
    """

    def __init__(self, run: Path, config: dict, milestones: Milestones, clock: Clock):
        self.run, self.config, self.milestones, self.clock = run, config, milestones, clock
        self.carried: list | None = None  # state of the window in a checkpoint
        self.totals: Totals | None = None

    def state_dict(self) -> dict:
        return {"window": self.window.state()}

    def load_state_dict(self, state: dict) -> None:
        self.carried = state["window"]

    def on_train_start(self, trainer: L.Trainer, module: DiffusionModule) -> None:
        super().on_train_start(trainer, module)
        self.window = LossWindow(self.config["strategy"], module.device, self.carried)

    def on_train_batch_end(self, trainer: L.Trainer, module: DiffusionModule, outputs, batch, batch_idx: int) -> None:
        self.window.add(outputs["loss"])  # already divided by the micro-batches of a step
        super().on_train_batch_end(trainer, module, outputs, batch, batch_idx)

    def after_step(self, trainer: L.Trainer, module: DiffusionModule) -> None:
        self.window.end_step(module.skipped)
        # the end is known here only if this is the last step or another callback asked for it
        self.milestones.step, self.milestones.is_last = self.step, self.step == trainer.max_steps or trainer.should_stop
        if not self.milestones.is_due():
            return
        self.totals = self.window.totals()  # waits for the device, hence before the clock
        self.clock.pause()
        if self.totals.in_a_row > self.config["max_skipped_steps"]:
            raise self._error(trainer, module)

    def _error(self, trainer: L.Trainer, module: DiffusionModule) -> UserError:
        totals, replay = self.totals, record_step(self.run, self.config, self.step, trainer, module)
        return UserError(
            Exit.NON_FINITE,
            f"by step {self.step} the loss is {totals.loss} and the norm of the gradient {module.grad_norm.item()}, "
            f"{totals.in_a_row} steps in a row; {last_checkpoint(self.run)}. "
            f"Try a lower optimizer.lr, a longer lr_schedule.warmup_steps or strategy.precision=32-true{replay}",
        )


def last_checkpoint(run: Path) -> str:
    """Return which checkpoint of a run is the last, for a message."""
    steps = checkpoints.list_steps(run)
    return f"the last good checkpoint is step {steps[-1]}" if steps else "there is no checkpoint yet"


def record_step(run: Path, config: dict, step: int, trainer: L.Trainer, module: DiffusionModule) -> str:
    """Write nonfinite_step.ckpt and .json of an optimizer step; return the sentence that says how to look at it.

    Rank 0 writes while the others wait, or they would seem to be lost. Nothing that goes wrong here is raised.
    """
    hint = ""
    if collectives.rank() == 0:
        try:
            data = trainer.datamodule
            batch = data.global_batch(step - 1)
            of_batch = batch["position"], len(batch["index"]), module.codec.shape, module.device, module.strata
            draws = draw_random_numbers(module.seed, *of_batch)
            taken = step_record.make_step_record(step, module.config_text, module.net, batch, draws, data.batch_size)
            step_record.save_step_record(run, taken)
            hint = f". To see where it began: {format_command('replay', format_override('run', display_path(run)))}"
            with trainer.precision_plugin.forward_context():
                found = step_record.trace_forward(module.net, module.diffusion, config, taken)
            step_record.write_step_summary(run, taken, found)
        except Exception as error:  # a full disk, no memory for a pass: the run ends with its own message all the same
            log.warning("the record of step %d is incomplete: %s", step, error)
    collectives.all_reduce_max(0)
    return hint
