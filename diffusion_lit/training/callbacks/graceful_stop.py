"""Handle signals: finish the step, save a checkpoint, then end or continue."""

import logging
import os
import signal
from collections.abc import Callable

import lightning as L

from diffusion_lit.distributed import collectives, process_group
from diffusion_lit.system.errors import PENDING_SIGNALS, SAVE_SIGNALS, STOP_SIGNALS, Exit, UserError
from diffusion_lit.training.callbacks.non_finite_guard import last_checkpoint
from diffusion_lit.training.callbacks.run_checkpoints import RunCheckpoints
from diffusion_lit.training.callbacks.step_callback import StepCallback
from diffusion_lit.training.module import DiffusionModule

log = logging.getLogger(__name__)


def ends_run(number: int) -> bool:
    """Return whether a signal ends the run after saving (0: no signal).

    SIGUSR1 does so only under SLURM, which sends it some time before the end of a job that
    can be requeued (--signal=USR1@120).
    """
    return number != 0 and (number not in SAVE_SIGNALS or "SLURM_JOB_ID" in os.environ)


class GracefulStop(StepCallback):
    """Acts on a signal at the end of a step on which all ranks agree, as the last callback of the step.

    Its handlers replace those of Lightning, which broadcast inside the handler
    and can hang. Between two rows of metrics.csv no rank waits for the others:
    they exchange signals while the next step runs, and act on them after it. At
    a row, and in a run of one process, they act at once, so that nothing that a
    signal has cut short is passed over.

    Attributes:
        signal: number of the signal that this rank has received, 0 for none.
        ended_by: the signal that ended the run, or None.
    """

    def __init__(self, *shared, checkpoints: RunCheckpoints):
        super().__init__(*shared)
        self.checkpoints = checkpoints
        self.signal, self.ended_by = 0, None
        self.exchanged: Callable[[], int] = lambda: 0  # waits for the signals of all ranks, of the step before
        self.previous_handlers: dict = {}

    def on_train_start(self, trainer: L.Trainer, module: DiffusionModule) -> None:
        """Install the handlers, and handle a signal that arrived earlier and that a library swallowed."""
        super().on_train_start(trainer, module)
        self.previous_handlers = {
            number: signal.signal(number, self._on_signal) for number in (*STOP_SIGNALS, *SAVE_SIGNALS)
        }
        for number in PENDING_SIGNALS[:1]:
            self._on_signal(number, None)

    def is_ending(self) -> bool:
        """Return whether this rank has received a signal that ends the run."""
        return ends_run(self.signal)

    def after_step(self, trainer: L.Trainer, module: DiffusionModule) -> None:
        """Save, and stop if the signal ends the run."""
        self._act_on(self._finish_exchange(), trainer, module)
        if self.ended_by is None:
            self.exchanged = collectives.start_all_reduce_max(self.signal)
            if self.milestones.is_due() or collectives.world_size() == 1:
                self._act_on(self._finish_exchange(), trainer, module)
        self.clock.resume()

    def on_train_end(self, trainer: L.Trainer, module: DiffusionModule) -> None:
        """Finish the exchange of a run that a later callback ended, and close."""
        self._finish_exchange()
        super().on_train_end(trainer, module)

    def _finish_exchange(self) -> int:
        received, self.exchanged = self.exchanged(), lambda: 0
        return received

    def _act_on(self, received: int, trainer: L.Trainer, module: DiffusionModule) -> None:
        if not received:
            return
        is_saved = collectives.broadcast_from_rank_zero(self.checkpoints.saved_step == self.step)
        if not is_saved:
            self.checkpoints.save(trainer, module, is_needed=ends_run(received))
        if ends_run(received):
            # no further validation, so that the resumed run validates as the unbroken one
            self.ended_by, trainer.should_stop, trainer.limit_val_batches = received, True, 0
        elif received == self.signal:
            self.signal = 0

    def close(self) -> None:
        """Restore the previous handlers."""
        for number, handler in self.previous_handlers.items():
            signal.signal(number, handler)
        self.previous_handlers = {}

    def _on_signal(self, number: int, frame) -> None:
        if ends_run(self.signal) and number == signal.SIGINT:
            raise UserError(Exit.SIGINT, f"stopped at once; {last_checkpoint(self.run)}")
        # a signal that only saves does not cancel one that ends the run
        self.signal = number if ends_run(number) else self.signal or number
        process_group.forward_signal(number)
        then = "" if ends_run(self.signal) else ", then continuing"
        log.info("%s: finishing this step and saving%s", signal.Signals(number).name, then)
