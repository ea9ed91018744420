"""A step of `train`, with everything around it, against a step of a bare loop with the same network, batch, optimizer
and EMA. Both run in one process, in alternating segments."""

import copy
import statistics
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from benchmarks.measure import compose_config, format_interval, print_table
from diffusion_lit.data.store import load_splits
from diffusion_lit.runs.build import make_network
from diffusion_lit.training import build_run
from diffusion_lit.training.launch_run import fit
from diffusion_lit.training.optimizers import make_optimizer

# only rows of metrics.csv: previews, validation and checkpoints have intervals of their own
QUIET = (
    "data.classifier_images=0", "val_every=0", "sample_every=0", "checkpoint_every=100000", "log_every=50",
    "strategy.precision=32-true",  # of the bare loop
)  # fmt: skip
RGB = (
    "data=synthetic", "data.image_size=32", "data.channels=3", "data.num_images=5000", "data.num_classes=10",
    "model=unet_small", "model.layers_per_block=1",
)  # fmt: skip
CASES = {  # name: (overrides, steps of a segment, pairs of segments)
    "digits, 0.27 M, 8x8": ((), 40, 30),
    "1.1 M, 32x32": (RGB, 4, 20),
}


class BareLoop:
    """A training loop without logging, checkpoints, validation or resume: cosine noise, v-prediction, MSE."""

    def __init__(self, config: dict, source):
        store, _ = load_splits(source, config["data"])
        self.images, self.labels = torch.from_numpy(np.array(store.images)), torch.from_numpy(store.labels)
        self.batch_size, self.num_classes = config["global_batch_size"], config["data"]["num_classes"]
        self.net = make_network(config)
        self.ema = copy.deepcopy(self.net).requires_grad_(False)
        self.optimizer = make_optimizer(self.net.parameters(), config["optimizer"], fused=True)
        angle = torch.linspace(0, torch.pi / 2, config["diffusion"]["num_train_timesteps"] + 2)[1:-1]
        self.alpha, self.sigma = angle.cos(), angle.sin()

    def step(self) -> None:
        index = torch.randint(len(self.images), (self.batch_size,))
        x0 = self.images[index].float() / 127.5 - 1
        y = torch.where(torch.rand(self.batch_size) < 0.1, self.num_classes, self.labels[index])
        t, eps = torch.randint(len(self.alpha), (self.batch_size,)), torch.randn_like(x0)
        alpha, sigma = self.alpha[t, None, None, None], self.sigma[t, None, None, None]
        v = self.net(alpha * x0 + sigma * eps, t, y)
        loss = (v - (alpha * eps - sigma * x0)).pow(2).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.parameters()), list(self.net.parameters()), 0.001)


class AlternateSteps(Callback):
    """After every `steps` steps of the Trainer, run as many of the bare loop; keep seconds per step of both."""

    def __init__(self, bare: BareLoop, steps: int):
        self.bare, self.steps = bare, steps
        self.trainer_seconds: list[float] = []
        self.bare_seconds: list[float] = []

    def on_train_batch_end(self, trainer, *_) -> None:
        if trainer.global_step % self.steps:
            return
        is_warm = trainer.global_step > self.steps
        now = time.perf_counter()
        if is_warm:
            self.trainer_seconds.append((now - self.start) / self.steps)
        for _ in range(self.steps):
            self.bare.step()
        self.start = time.perf_counter()
        if is_warm:
            self.bare_seconds.append((self.start - now) / self.steps)


def time_pairs(overrides: tuple[str, ...], steps: int, pairs: int) -> AlternateSteps:
    config, source = compose_config(*overrides, *QUIET, f"max_steps={steps * (pairs + 1) + 1}")
    timer, make_trainer = AlternateSteps(BareLoop(config, source), steps), build_run.make_trainer

    def make_timed_trainer(config, run, net, callbacks, *rest):
        return make_trainer(config, run, net, [*callbacks, timer], *rest)

    build_run.make_trainer = make_timed_trainer
    try:
        with tempfile.TemporaryDirectory() as folder:
            fit(config, source, Path(folder) / "run", [])
    finally:
        build_run.make_trainer = make_trainer
    return timer


def measure_rows() -> Iterator[list[str]]:
    for name, (overrides, steps, pairs) in CASES.items():
        timer = time_pairs(overrides, steps, pairs)
        both = list(zip(timer.trainer_seconds, timer.bare_seconds, strict=True))
        yield [
            name,
            f"{1000 * statistics.median(timer.bare_seconds):.1f} ms",
            format_interval([1000 * (full - bare) for full, bare in both], " ms", 2),
            format_interval([full / bare for full, bare in both], "", 3),
            f"{len(both)} x {steps}",
        ]


def main(arguments: Namespace) -> None:
    print_table(["", "bare step", "more in `train`", "ratio", "pairs x steps"], measure_rows())
