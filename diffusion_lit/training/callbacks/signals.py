"""Signals: the run finishes its step, saves, and ends or goes on."""

import logging
import os
import signal

import lightning as L

from diffusion_lit.distributed import collectives, process_group
from diffusion_lit.system.errors import PENDING_SIGNALS, SAVE_SIGNALS, STOP_SIGNALS, Exit, UserError
from diffusion_lit.training.callbacks.non_finite import last_checkpoint
from diffusion_lit.training.callbacks.run_checkpoints import RunCheckpoints
from diffusion_lit.training.callbacks.step import Clock, StepCallback
from diffusion_lit.training.module import DiffusionModule

log = logging.getLogger(__name__)

SIGNALS = (*STOP_SIGNALS, *SAVE_SIGNALS)


def ends_run(number: int) -> bool:
    """Return whether a signal ends the run once it has saved.

    SIGUSR1 does only where a job can be queued again: under SLURM, which sends it some time before the job's end
    (--signal=USR1@120).
    """
    return number != 0 and (number not in SAVE_SIGNALS or "SLURM_JOB_ID" in os.environ)


class GracefulStop(StepCallback):
    """Acts on a signal at the end of a step on which all ranks agree, after everything else of the step.

    Its handlers replace Lightning's, which broadcast inside the handler and may wait for ever.

    Attributes:
        signal: number of the signal that this rank has received, 0 for none.
        ended_by: the signal that ended the run, or None.
    """

    def __init__(self, checkpoints: RunCheckpoints, clock: Clock):
        self.checkpoints, self.clock = checkpoints, clock
        self.signal, self.ended_by = 0, None
        self.handlers: dict = {}  # of signals, as they were before

    def on_train_start(self, trainer: L.Trainer, module: DiffusionModule) -> None:
        super().on_train_start(trainer, module)
        self.handlers = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        for number in PENDING_SIGNALS[:1]:
            self._on_signal(number, None)

    def is_ending(self) -> bool:
        return ends_run(self.signal)

    def after_step(self, trainer: L.Trainer, module: DiffusionModule) -> None:
        received = collectives.all_reduce_max(self.signal)
        if received:
            self._act(received, trainer, module)
        self.clock.resume()

    def _act(self, received: int, trainer: L.Trainer, module: DiffusionModule) -> None:
        is_saved = collectives.broadcast_from_rank_zero(self.checkpoints.saved_step == self.step)
        if not is_saved:
            self.checkpoints.save(trainer, module, is_needed=ends_run(received))
        if ends_run(received):
            # no further validation: a resumed run makes those of the unbroken one
            self.ended_by, trainer.should_stop, trainer.limit_val_batches = received, True, 0
        elif received == self.signal:
            self.signal = 0  # saved, as requested

    def on_train_end(self, trainer: L.Trainer, module: DiffusionModule) -> None:
        self._restore_handlers()

    def on_exception(self, trainer: L.Trainer, module: DiffusionModule, exception: BaseException) -> None:
        self._restore_handlers()

    def _on_signal(self, number: int, frame) -> None:
        if ends_run(self.signal) and number == signal.SIGINT:
            raise UserError(Exit.SIGINT, f"stopped at once; {last_checkpoint(self.checkpoints.run)}")
        self.signal = number if ends_run(number) else self.signal or number  # one that only saves takes no end back
        process_group.forward_signal(number)
        then = "" if ends_run(self.signal) else ", then going on"
        log.info("%s: finishing this step and saving%s", signal.Signals(number).name, then)

    def _restore_handlers(self) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.handlers = {}
