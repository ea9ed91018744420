"""Measure speed and memory of training settings for one recipe, with the parts of a run. No files are kept.

Each measurement is a short fit with the run's module, optimizer, EMA and
batches. What else a run does (sampling, validation, checkpoints) is done once,
or in part.
"""

import copy
import gc
import itertools
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import lightning as L
import torch

from diffusion_lit.data.batches import Batches
from diffusion_lit.data.datamodule import ImageDataModule
from diffusion_lit.runs.build import make_codec, make_configured_sampler
from diffusion_lit.system.errors import Exit, UserError
from diffusion_lit.system.memory import is_out_of_memory, limit_to_free_memory, peak_memory_gib, reset_peak_memory
from diffusion_lit.training import build_run
from diffusion_lit.training.collective_sampling import continue_on_error, eval_mode, generate_on_all_ranks
from diffusion_lit.training.module import DiffusionModule

MIN_SECONDS = 2.0  # of a measurement
MAX_STEP_SECONDS = 10.0  # expected time of a step; slower ones are measured with fewer images
FIRST_IMAGES = 4  # images at a time in the first measurement
SAMPLER_STEPS = 4  # of the measurement of sampling


class Measurement(NamedTuple):
    """Speed and memory of one training setting.

    Attributes:
        strategy: the `strategy` group.
        micro_batch: images of a micro-batch.
        measured_batch: images at a time in the measurement, fewer than `micro_batch` if a
            step is too slow.
        speed: images per second; None if it does not fit into memory.
        memory: peak memory in GiB, if known.
        compile_seconds: time of the first step with `compile`.
    """

    strategy: dict
    micro_batch: int
    measured_batch: int
    speed: float | None
    memory: float | None
    compile_seconds: float = 0.0


class Stopwatch(L.Callback):
    """Ends a fit after `seconds`, or after the first step if that is slow.

    Args:
        seconds: duration of the measurement.
        on_end: called at the end, with the Trainer and the module.
        compiles: the first step compiles, so its time does not count.

    Attributes:
        rate: optimizer steps per second.
        memory: peak memory in GiB, if known.
    """

    def __init__(
        self,
        seconds: float,
        on_end: Callable[[L.Trainer, DiffusionModule], None] = lambda trainer, module: None,
        compiles: bool = False,
    ):
        self.seconds, self.on_end, self.compiles = seconds, on_end, compiles
        self.marks: list[tuple[int, float]] = []  # steps done, time
        self.memory: float | None = None

    def setup(self, trainer: L.Trainer, module: DiffusionModule, stage: str) -> None:
        """Reset the peak memory."""
        self.has_memory_peak = reset_peak_memory(trainer.strategy.root_device)

    def on_train_start(self, trainer: L.Trainer, module: DiffusionModule) -> None:
        """Start the clock."""
        self.begun = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, module: DiffusionModule, *_) -> None:
        """Take the time after 1, 2, 4, 8, ... steps: waiting for the device in each step would slow it down."""
        step = trainer.global_step
        if step & (step - 1) or step == (self.marks[-1][0] if self.marks else 0):
            return
        synchronize(module.device)
        now = time.perf_counter()
        self.marks.append((step, now))
        is_slow = now - self.begun > 2 * self.seconds and not self.compiles
        trainer.should_stop = is_slow or now - self.marks[0][1] > self.seconds

    def on_train_end(self, trainer: L.Trainer, module: DiffusionModule) -> None:
        """Read the peak memory."""
        self.memory = peak_memory_gib(module.device) if self.has_memory_peak else None
        self.on_end(trainer, module)

    @property
    def first_step_seconds(self) -> float:
        """Return the time of the first step."""
        return self.marks[0][1] - self.begun

    @property
    def rate(self) -> float:
        """Return the optimizer steps per second, without the first step if there are others."""
        if len(self.marks) == 1:
            return 1 / self.first_step_seconds
        (before, began), (after, ended) = self.marks[min(1, len(self.marks) - 2)], self.marks[-1]
        return (after - before) / (ended - began)


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


class TrainingBenchmark:
    """Measures training settings on one process's share of the global batch.

    Args:
        config: configuration of the run; its `global_batch_size` is that share, its
            strategy has one device.
        data: the images.
        scratch: a temporary folder.
        disk: a folder on the disk of the run.
    """

    def __init__(self, config: dict, data: ImageDataModule, scratch: Path, disk: Path):
        self.config, self.data, self.scratch, self.disk = config, data, scratch, disk
        self.share = config["global_batch_size"]
        # seconds of: one validation, one batch of the sampler, one checkpoint
        self.validation_seconds = self.sampling_seconds = self.checkpoint_seconds = 0.0

    @property
    def is_slow(self) -> bool:
        """Return whether an optimizer step takes too long to wait for."""
        return self.seconds_per_image * self.share > MAX_STEP_SECONDS

    def fit(self, strategy: dict, batch_size: int, watch: Stopwatch, is_batch_repeated: bool = False) -> None:
        """Train until the stopwatch ends it, with batches of the loader or with one batch again and again."""
        config = self.config | {"strategy": strategy, "max_steps": 10**9}
        data = copy.copy(self.data)
        data.batch_size = batch_size
        if is_batch_repeated:
            data = itertools.repeat(next(iter(self.batches(batch_size))))
        module = build_run.make_module(config)
        trainer = build_run.make_trainer(config, self.scratch, module.net, [watch])
        with limit_to_free_memory():
            trainer.fit(module, data, weights_only=True)

    def batches(self, batch_size: int) -> Batches:
        """Return the batches of training from the first image on."""
        return self.data.batches(batch_size, lambda: 0)

    def measure_costs(self) -> None:
        """Train on a few images, to learn the speed of this machine and what validation, sampling and saving cost.

        Raises:
            UserError: exit 75 if even they do not fit into memory.
        """
        count = min(FIRST_IMAGES, self.share)
        strategy = self.config["strategy"] | {"accumulate": 1, "compile": False}
        watch = Stopwatch(MIN_SECONDS / 4, lambda trainer, module: self._measure_costs(trainer, module, watch.rate))
        try:
            self.fit(strategy, count, watch)
            self.free_memory()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            message = f"out of memory with {count} images at a time. Choose a smaller network or image size."
            raise UserError(Exit.INTERRUPTED, message) from None

    def _measure_costs(self, trainer: L.Trainer, module: DiffusionModule, rate: float) -> None:
        self.device, self.table = module.device, module.diffusion.process
        # on a GPU a few images take as long as many, and no step is too slow
        self.seconds_per_image = 1 / rate / min(FIRST_IMAGES, self.share) if self.device.type == "cpu" else 0.0
        with continue_on_error("measuring the sampler"):
            self.sampling_seconds = self._measure_sampling(module)
        if self.data.val is not None:
            self.validation_seconds = self._measure_validation(module)
        with tempfile.TemporaryDirectory(prefix=".plan-", dir=self.disk) as folder:
            begun = time.perf_counter()
            trainer.save_checkpoint(Path(folder, "checkpoint"))
            self.checkpoint_seconds = time.perf_counter() - begun
        if error := trainer.strategy.checkpoint_io.error:
            raise error

    def _measure_sampling(self, module: DiffusionModule) -> float:
        """Return the seconds of a batch of the sampler, from a few of its steps."""
        sampler = make_configured_sampler(self.config)
        steps, batch_size = len(sampler.build_scheduler(self.table).timesteps), sampler.batch_size
        is_slow = self.seconds_per_image * batch_size > MAX_STEP_SECONDS
        few = replace(sampler, steps=min(steps, SAMPLER_STEPS), batch_size=FIRST_IMAGES if is_slow else batch_size)
        few_steps = len(few.build_scheduler(self.table).timesteps)
        labels = ["" if self.config["text_encoder"] else 0] * few.batch_size
        begun = time.perf_counter()
        generate_on_all_ranks([module.ema], module, self.config, few, labels, range(few.batch_size))
        return (time.perf_counter() - begun) * (steps / few_steps) * (batch_size / few.batch_size)

    def _measure_validation(self, module: DiffusionModule) -> float:
        """Return the seconds of a validation of both networks, from a part of a batch."""
        batch = next(iter(self.data.val_dataloader()))
        count = max(1, min(len(batch["y"]), int(MAX_STEP_SECONDS / 2 / max(self.seconds_per_image, 1e-9))))
        images = module.codec.encode(batch["image"][:count].to(module.device))
        y, level = module.condition.read_batch(batch)[:count].to(module.device), module.levels.indices_at(0, count)
        eps, t = torch.randn_like(images), module.levels.t[level].to(module.device)
        with eval_mode(module.ema), torch.no_grad():
            begun = time.perf_counter()
            module.diffusion.error(module.ema, images, t, eps, y).cpu()
        return (time.perf_counter() - begun) * 2 * self.data.val_images / count

    def measured_batch(self, strategy: dict) -> int:
        """Return the images of a micro-batch, or fewer if a step is too slow to wait for."""
        micro_batch = self.share // strategy["accumulate"]
        return min(micro_batch, max(1, int(MAX_STEP_SECONDS / self.seconds_per_image))) if self.is_slow else micro_batch

    def is_same_measurement(self, one: dict, other: dict) -> bool:
        """Return whether two settings would be measured in the same way."""
        is_equal = one == other | {"accumulate": one["accumulate"]}
        is_same_batch = self.is_slow and self.measured_batch(one) == self.measured_batch(other)
        return one == other or (is_equal and is_same_batch)

    def measure(self, strategy: dict) -> Measurement:
        """Return speed and memory of a setting; without speed if it does not fit into memory."""
        micro_batch, count = self.share // strategy["accumulate"], self.measured_batch(strategy)
        accumulate = 1 if self.is_slow else strategy["accumulate"]
        watch, speed, compile_seconds = Stopwatch(MIN_SECONDS, compiles=strategy["compile"]), None, 0.0
        try:
            self.fit(strategy | {"accumulate": accumulate}, count, watch)
            speed = watch.rate * count * accumulate
            compile_seconds = watch.first_step_seconds if strategy["compile"] else 0.0
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        self.free_memory()  # outside the handler, which keeps the tensors of the attempt alive
        return Measurement(strategy, micro_batch, count, speed, watch.memory if speed else None, compile_seconds)

    def measure_network(self, best: Measurement) -> float:
        """Return images per second of training steps on one batch again and again."""
        watch = Stopwatch(MIN_SECONDS, compiles=best.strategy["compile"])
        self.fit(best.strategy | {"accumulate": 1}, best.measured_batch, watch, is_batch_repeated=True)
        self.free_memory()
        return watch.rate * best.measured_batch

    def measure_loader(self, batch_size: int) -> float:
        """Return images per second of the loader, from stored images to floats on the device."""
        device = self.device if self.device.type == "cuda" else None
        begun, batches = time.perf_counter(), iter(self.data.batches(batch_size, lambda: 0, device=device))
        images, codec = 0, make_codec(self.config)
        while time.perf_counter() - begun < MIN_SECONDS / 2:
            images += len(codec.encode(next(batches)["image"].to(self.device)))
        synchronize(self.device)
        return images / (time.perf_counter() - begun)

    def free_memory(self) -> None:
        """Free what the last measurement held."""
        gc.collect()
        if self.device.type == "cuda":
            torch._dynamo.reset()
            torch.cuda.empty_cache()
