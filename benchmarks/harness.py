"""Steps of `train`, all of it, and steps of a bare loop with the same network, batch, optimizer and average: in one
process, so many of the one and then so many of the other."""

import copy
import statistics
import tempfile
import time
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from benchmarks.measure import config_of, shown, table
from diffusion_lit.data.store import load_splits
from diffusion_lit.runs.build import make_network
from diffusion_lit.training import trainer as setup
from diffusion_lit.training.fit import fit
from diffusion_lit.training.optimizers import make_optimizer

PHOTOS = (
    "data=synthetic", "data.image_size=32", "data.channels=3", "data.num_images=5000", "data.num_classes=10",
    "model=unet_small", "model.layers_per_block=1",
)  # fmt: skip
CASES = {  # name: (words, steps of a segment, pairs)
    "digits, 0.27 M, 8x8": ((), 40, 30),
    "1.1 M, 32x32": (PHOTOS, 4, 20),
}


class Bare:
    """What somebody writes by hand who wants nothing but the loss."""

    def __init__(self, config: dict, source):
        store, _ = load_splits(source, config["data"])
        self.images, self.labels = torch.from_numpy(store.images.copy()), torch.from_numpy(store.labels)
        self.batch, self.classes = config["global_batch_size"], config["data"]["num_classes"]
        self.net = make_network(config)
        self.ema = copy.deepcopy(self.net).requires_grad_(False)
        self.optimizer = make_optimizer(self.net.parameters(), config["optimizer"], fused=True)
        angle = torch.linspace(0, torch.pi / 2, config["diffusion"]["num_train_timesteps"] + 2)[1:-1]
        self.alpha, self.sigma = angle.cos(), angle.sin()

    def step(self) -> None:
        index = torch.randint(len(self.images), (self.batch,))
        x0 = self.images[index].float() / 127.5 - 1
        y = torch.where(torch.rand(self.batch) < 0.1, self.classes, self.labels[index])
        t, eps = torch.randint(len(self.alpha), (self.batch,)), torch.randn_like(x0)
        alpha, sigma = self.alpha[t, None, None, None], self.sigma[t, None, None, None]
        v = self.net(alpha * x0 + sigma * eps, t, y)
        loss = (v - (alpha * eps - sigma * x0)).pow(2).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.parameters()), list(self.net.parameters()), 0.001)


class Turns(Callback):
    """After every `steps` steps of the trainer, as many of the bare loop."""

    def __init__(self, bare: Bare, steps: int):
        self.bare, self.steps = bare, steps
        self.full: list[float] = []
        self.plain: list[float] = []

    def on_train_batch_end(self, trainer, *_) -> None:
        if trainer.global_step % self.steps:
            return
        now = time.perf_counter()
        if trainer.global_step > self.steps:  # the first segment warms up
            self.full.append((now - self.start) / self.steps)
        for _ in range(self.steps):
            self.bare.step()
        self.start = time.perf_counter()
        if trainer.global_step > self.steps:
            self.plain.append((self.start - now) / self.steps)


def pairs_of(words: tuple[str, ...], steps: int, pairs: int) -> Turns:
    config, source = config_of(*words, f"max_steps={steps * (pairs + 1) + 1}", "data.judge_images=0")
    turns, make_trainer = Turns(Bare(config, source), steps), setup.make_trainer
    setup.make_trainer = lambda config, run, net, callbacks, *rest: make_trainer(
        config, run, net, [*callbacks, turns], *rest
    )
    try:
        with tempfile.TemporaryDirectory() as folder:
            fit(config, source, Path(folder) / "run", [])
    finally:
        setup.make_trainer = make_trainer
    return turns


def main() -> None:
    rows = []
    for name, (words, steps, pairs) in CASES.items():
        # with its rows of metrics.csv; previews, probes and checkpoints, which come every so many steps, are apart
        quiet = ("val_every=0", "sample_every=0", "checkpoint_every=100000", "log_every=50")
        turns = pairs_of((*words, *quiet), steps, pairs)
        extra = [1000 * (full - plain) for full, plain in zip(turns.full, turns.plain, strict=True)]
        ratio = [full / plain for full, plain in zip(turns.full, turns.plain, strict=True)]
        plain = 1000 * statistics.median(turns.plain)
        rows.append([name, f"{plain:.1f} ms", shown(extra, " ms", 2), shown(ratio, "", 3), f"{len(extra)} x {steps}"])
    table(["", "bare step", "more in `train`", "ratio", "pairs x steps"], rows)
