"""Measure some optimizer steps of a run as `train` makes it, in this process, and end the run after them."""

import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback

from diffusion_lit.training import build_run
from diffusion_lit.training.benchmark import synchronize
from diffusion_lit.training.launch_run import fit

NEVER = (
    "val_every=0", "sample_every=0", "checkpoint_every=100000", "data.classifier_images=0", "logger=none",
    "max_steps=1000000",
)  # fmt: skip


class WindowEnd(Exception):
    """Ends a run after its window."""


class Window(Callback):
    """Measures the steps after `first` up to `last`, then ends the run.

    Args:
        first: steps before, in which compilation and caches warm up.
        last: last step.
        measure: returns a context around the steps.

    Attributes:
        seconds: of the steps, with the wait for the device at their end.
        memory: peak memory of a GPU in GiB, else 0.
        loss: of the last step.
        result: what `measure` returned on entering.
        module: the module, on the CPU.
    """

    def __init__(self, first: int, last: int, measure: Callable[[], AbstractContextManager] = nullcontext):
        self.first, self.last, self.measure = first, last, measure

    def on_train_batch_end(self, trainer, module, outputs, *_) -> None:
        if trainer.global_step not in (self.first, self.last):
            return
        synchronize(module.device)
        if trainer.global_step == self.first:
            self.context = self.measure()
            self.result, self.start = self.context.__enter__(), time.perf_counter()
            return
        self.seconds = time.perf_counter() - self.start
        self.context.__exit__(None, None, None)
        self.memory = torch.cuda.max_memory_allocated() / 2**30 if module.device.type == "cuda" else 0.0
        self.loss, self.module = outputs["loss"].item(), module
        raise WindowEnd

    @property
    def steps_per_second(self) -> float:
        return (self.last - self.first) / self.seconds


def run_window(config: dict, source, window: Window) -> Window:
    """Train with all callbacks of a run until the window ends; return the window."""
    make_trainer = build_run.make_trainer

    def make_measured_trainer(config, run, net, callbacks, *rest):
        return make_trainer(config, run, net, [*callbacks, window], *rest)

    build_run.make_trainer = make_measured_trainer
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        with tempfile.TemporaryDirectory() as folder:
            fit(config, source, Path(folder), [])
    except WindowEnd:
        return window
    finally:
        build_run.make_trainer = make_trainer
    raise RuntimeError("the run ended before its window")


@contextmanager
def count_synchronizations() -> Iterator[list]:
    """Collect a warning for every time that the CPU waits for the GPU inside the block."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield caught
        finally:
            torch.cuda.set_sync_debug_mode("default")
            caught[:] = [warning for warning in caught if "synchroniz" in str(warning.message)]
