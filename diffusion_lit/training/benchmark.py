"""Speed and memory of ways to train one recipe, measured with the parts of a run; nothing is kept.

Each way is a short fit of Lightning's Trainer with the run's module, optimizer, average and batches. What a run does
besides (previews, held-out losses, checkpoints) is done once, or a part of it.
"""

import copy
import gc
import itertools
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import lightning as L
import torch

from diffusion_lit.data.batches import Batches
from diffusion_lit.data.datamodule import ImageDataModule
from diffusion_lit.runs.build import make_codec, make_configured_sampler
from diffusion_lit.system.errors import Exit, UserError
from diffusion_lit.system.memory import is_out_of_memory, limit_to_free_memory, peak_memory_gib, reset_peak_memory
from diffusion_lit.training import trainer as run_trainer
from diffusion_lit.training.callbacks.sample_previews import draw_preview
from diffusion_lit.training.collective_sampling import continue_on_error, eval_mode
from diffusion_lit.training.loggers.run_logger import make_logger
from diffusion_lit.training.module import DiffusionModule

SECONDS = 2.0  # that a way of training is measured for, at least
PATIENCE = 10.0  # seconds that one step may take by what is known; longer ones are measured with fewer images
LOOK = 4  # images at a time, of the first look


class Row(NamedTuple):
    """A way of training: `whole` images are a micro-batch; with `at_a_time` of them, all if they are quick, it made
    `speed` images per second and took `memory` GiB at the most. Without speed it does not fit into memory.
    """

    strategy: dict
    whole: int
    at_a_time: int
    speed: float | None
    memory: float | None
    compiling: float = 0.0  # seconds of the first step


@dataclass
class Costs:
    """Seconds of what a run does besides training, each time."""

    held_out: float = 0.0
    preview: float = 0.0
    sampled: float = 0.0  # a batch of the sampler, by one network
    checkpoint: float = 0.0


class Stopwatch(L.Callback):
    """Ends a fit when it has taken `seconds`, or after its first step if that is slow, unless it `compiles` then;
    `rate` is then in steps per second. What `then` does comes last, with the trainer still there.
    """

    def __init__(
        self,
        seconds: float,
        then: Callable[[L.Trainer, DiffusionModule], None] | None = None,
        compiles: bool = False,
    ):
        self.seconds, self.then, self.compiles = seconds, then, compiles
        self.marks: list[tuple[int, float]] = []  # steps done, clock
        self.memory: float | None = None

    def setup(self, trainer: L.Trainer, module: DiffusionModule, stage: str) -> None:
        self.known = reset_peak_memory(trainer.strategy.root_device)

    def on_train_start(self, trainer: L.Trainer, module: DiffusionModule) -> None:
        self.begun = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, module: DiffusionModule, *_) -> None:
        step = trainer.global_step
        if step & (step - 1) or step == (self.marks[-1][0] if self.marks else 0):
            return  # a GPU is waited for after 1, 2, 4, 8... steps only, as in a run from row to row
        wait_for(module.device)
        now = time.perf_counter()
        self.marks.append((step, now))
        slow = now - self.begun > 2 * self.seconds and not self.compiles
        trainer.should_stop = slow or now - self.marks[0][1] > self.seconds

    def on_train_end(self, trainer: L.Trainer, module: DiffusionModule) -> None:
        self.memory = peak_memory_gib(module.device) if self.known else None
        if self.then:
            self.then(trainer, module)

    @property
    def first(self) -> float:
        return self.marks[0][1] - self.begun

    @property
    def rate(self) -> float:
        if len(self.marks) == 1:
            return 1 / self.first
        (before, began), (after, ended) = self.marks[min(1, len(self.marks) - 2)], self.marks[-1]
        return (after - before) / (ended - began)


class Counted:
    """As a progress bar: counts the steps of a preview, and says when enough of them were seen."""

    total, done, seen, begun = 1, 0, 1, 0.0

    def add_task(self, description: str, total: int, unit: str) -> int:
        self.total, self.begun = total, time.perf_counter()
        return 0

    def advance(self, task: int) -> None:
        self.done += 1

    def remove_task(self, task: int) -> None:
        pass

    def enough(self) -> bool:
        self.seen = self.done + 1
        return time.perf_counter() - self.begun > PATIENCE / 2

    def seconds(self) -> float:
        """Of the whole preview."""
        taken = time.perf_counter() - self.begun
        return taken if self.done == self.total else taken / self.seen * self.total


def wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


class Bench:
    """Measures ways of training one recipe, on one process's share of its global batch.

    Args:
        config: of the run, its `global_batch_size` that share, its strategy of one device.
        scratch: a folder that is removed in the end.
        disk: a folder where the run will be.
        compiles: whether the run's own strategy goes with `compile`.
    """

    def __init__(self, config: dict, data: ImageDataModule, scratch: Path, disk: Path, compiles: bool = True):
        self.config, self.data, self.scratch, self.disk = config, data, scratch, disk
        self.share, self.compiles = config["global_batch_size"], compiles
        self.costs = Costs()

    @property
    def slow(self) -> bool:
        """Whether an optimizer step takes longer than one can wait for."""
        return self.per_image * self.share > PATIENCE

    def fit(self, strategy: dict, at_a_time: int, watch: Stopwatch, same: bool = False) -> None:
        """Train until the `watch` ends it; with the `same` batch all the time, which no loader brings."""
        config = self.config | {"strategy": strategy, "max_steps": 10**9}
        data = copy.copy(self.data)
        data.batch_size = at_a_time
        module = run_trainer.make_module(config)
        trainer = run_trainer.make_trainer(config, self.scratch, module.net, [watch])
        one = next(iter(self.batches(at_a_time)))
        with limit_to_free_memory():
            trainer.fit(module, itertools.repeat(one) if same else data, weights_only=True)

    def batches(self, at_a_time: int) -> Batches:
        return self.data.batches(at_a_time, lambda: 0)

    def look(self) -> None:
        """A few images: how slow this machine is, and what everything but training costs.

        Raises:
            UserError: exit 75 if even they do not fit into memory.
        """
        few = min(LOOK, self.share)
        watch = Stopwatch(SECONDS / 4, self.besides)
        try:
            self.fit(self.config["strategy"] | {"accumulate": 1, "compile": False}, few, watch)
            self.tidy()
            return
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        what = f"{few} images at a time, a preview and a part of the held-out loss"
        told = f"out of memory in a first look ({what}): a smaller network or image needs less"
        raise UserError(Exit.INTERRUPTED, told)

    def besides(self, trainer: L.Trainer, module: DiffusionModule) -> None:
        """Do once, or in part, what the run does from time to time."""
        watch = next(one for one in trainer.callbacks if isinstance(one, Stopwatch))
        self.device, self.table = module.device, module.diffusion.process
        # a GPU is never too slow, and a few images say little of how long many take
        self.per_image = 1 / watch.rate / min(LOOK, self.share) if self.device.type == "cpu" else 0.0
        sampler = make_configured_sampler(self.config)
        if self.per_image * sampler.batch_size > PATIENCE:
            sampler = replace(sampler, batch_size=LOOK)
        bar = Counted()
        quiet = make_logger(self.config["logger"], is_first=False)
        with continue_on_error("the preview"):
            draw_preview(self.scratch, 0, module, self.config, sampler, quiet, bar.enough, bar)
        self.costs.preview = bar.seconds()
        self.costs.sampled = self.costs.preview / bar.total * make_configured_sampler(self.config).batch_size
        self.costs.sampled *= len(sampler.build_scheduler(module.diffusion.process).timesteps) / sampler.batch_size
        if self.data.val is not None:
            self.costs.held_out = self.held_out(module)
        with tempfile.TemporaryDirectory(prefix=".plan-", dir=self.disk) as folder:
            begun = time.perf_counter()
            trainer.save_checkpoint(Path(folder, "checkpoint"))
            self.costs.checkpoint = time.perf_counter() - begun
        if error := trainer.strategy.checkpoint_io.error:
            raise error

    def held_out(self, module: DiffusionModule) -> float:
        """Return the seconds of a validation of both networks, from a part of a batch."""
        batch = next(iter(self.data.val_dataloader()))
        count = max(1, min(len(batch["y"]), int(PATIENCE / 2 / max(self.per_image, 1e-9))))
        images = module.codec.encode(batch["image"][:count].to(module.device))
        y, level = batch["y"][:count].to(module.device), module.levels.at(0, count)
        eps, t = torch.randn_like(images), module.levels.t[level].to(module.device)
        with eval_mode(module.ema), torch.no_grad():
            begun = time.perf_counter()
            module.diffusion.error(module.ema, images, t, eps, y).cpu()
        return (time.perf_counter() - begun) * 2 * self.data.val_images / count

    def at_a_time(self, strategy: dict) -> int:
        """Images of a micro-batch, or fewer where a whole step is too slow to wait for."""
        whole = self.share // strategy["accumulate"]
        return min(whole, max(1, int(PATIENCE / self.per_image))) if self.slow else whole

    def alike(self, one: dict, other: dict) -> bool:
        """Whether two ways would be measured in the same way."""
        if one == other:
            return True
        rest = other | {"accumulate": one["accumulate"]}
        return self.slow and one == rest and self.at_a_time(one) == self.at_a_time(other)

    def measured(self, strategy: dict) -> Row:
        whole, count = self.share // strategy["accumulate"], self.at_a_time(strategy)
        watch = Stopwatch(SECONDS, compiles=strategy["compile"])
        fitted = strategy | ({"accumulate": 1} if self.slow else {})
        fits = True
        try:
            self.fit(fitted, count, watch)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            fits = False
        self.tidy()  # out of the handler, which holds on to the tensors of the attempt
        if not fits:
            return Row(strategy, whole, count, None, None)
        speed = watch.rate * count * fitted["accumulate"]
        return Row(strategy, whole, count, speed, watch.memory, watch.first if strategy["compile"] else 0.0)

    def network_alone(self, row: Row) -> float:
        """Images per second of training steps on one batch again and again."""
        watch = Stopwatch(SECONDS, compiles=row.strategy["compile"])
        self.fit(row.strategy | {"accumulate": 1}, row.at_a_time, watch, same=True)
        self.tidy()
        return watch.rate * row.at_a_time

    def loader_alone(self, at_a_time: int) -> float:
        """Images per second from the stored pictures to floats on the device."""
        begun, batches = time.perf_counter(), iter(self.batches(at_a_time))
        images, codec = 0, make_codec(self.config)
        while time.perf_counter() - begun < SECONDS / 2:
            images += len(codec.encode(next(batches)["image"].to(self.device)))
        wait_for(self.device)
        return images / (time.perf_counter() - begun)

    def tidy(self) -> None:
        """What a way of training held is free for the next one."""
        gc.collect()
        if self.device.type == "cuda":
            torch._dynamo.reset()
            torch.cuda.empty_cache()
