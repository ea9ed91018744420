"""Adapters of the programs of `benchmarks.bakeoff`: their trials, how each is started, and how it draws images."""

import json
import math
import shlex
import shutil
import subprocess
import sys
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from benchmarks.agreement import require_checkout
from benchmarks.measure import compose_config, require_packages, require_script, run_command
from benchmarks.peers import BATCH, script_arguments
from diffusion_lit.runs.build import make_network

PEERS = Path(__file__).with_name("bakeoff_peers.py")
EVALUATIONS = 20  # of the network for an image
TRIALS = {  # the first of each is the program with its own defaults
    "diffusion_lit": (
        "optimizer.lr=0.001", "optimizer.lr=0.0005", "optimizer.lr=0.002", "optimizer.lr=0.001 diffusion=flow",
        "optimizer.lr=0.002 diffusion=flow", "optimizer.lr=0.001 strategy.precision=bf16-mixed",
    ),
    "diffusers": (
        "--learning_rate 0.0001", "--learning_rate 0.0003", "--learning_rate 0.001",
        "--learning_rate 0.0003 --prediction_type sample", "--learning_rate 0.001 --prediction_type sample",
        "--learning_rate 0.001 --mixed_precision bf16",
    ),
    "ddp": (
        "train_lr=0.0001", "train_lr=0.0003", "train_lr=0.001", "train_lr=0.003",
        "train_lr=0.001 objective=pred_noise", "train_lr=0.001 amp=true mixed_precision_type=bf16",
    ),
    "edm": (
        "lr=0.001 dropout=0.13 augment=0.12", "lr=0.001", "lr=0.0003", "lr=0.003", "lr=0.001 precond=vp",
        "lr=0.003 precond=vp",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Training:
    folder: Path
    trial: str
    seed: int
    steps: int


class DiffusionLit:
    extra_steps = 0  # after the last one that counts, until the weights are saved

    def __init__(self, images: Path, arguments: Namespace):
        data = ["data=image_folder", f"data.root={images}", "data.labels=none", "data.val_fraction=0"]
        self.overrides = [*data, f"data.cache_dir={arguments.out / 'decoded'}", f"global_batch_size={BATCH}"]

    def make_unet(self) -> UNet2DModel:
        return make_network(compose_config(*self.overrides)[0]).unet

    def count_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.make_unet().parameters())

    def command(self, training: Training) -> tuple:
        length = [f"max_steps={training.steps}", f"checkpoint_every={training.steps}", "val_every=0", "sample_every=0"]
        place = [f"seed={training.seed}", f"run_dir={training.folder / 'run'}"]
        return "module", "diffusion_lit.train", *self.overrides, *length, *place, *shlex.split(training.trial)

    def sample(self, training: Training, file: Path, count: int) -> None:
        self.sample_run(training.folder / "run", training, file, count)

    def sample_run(self, run: Path, training: Training, file: Path, count: int) -> None:
        shutil.rmtree(out := training.folder / "samples", ignore_errors=True)
        sampler = ["sampler=dpmpp_sde", f"sampler.steps={EVALUATIONS}", "precision=32-true"]
        run_command(
            "sample", f"run={run}", f"num_images={count}", f"seed={training.seed}", f"out={out}", "npy=true", *sampler
        )
        (out / "images.npy").rename(file)
        shutil.rmtree(out)


class Diffusers(DiffusionLit):
    """train_unconditional.py with the network of diffusion_lit, sampled as diffusion_lit samples any pipeline."""

    extra_steps = 1

    def __init__(self, images: Path, arguments: Namespace):
        super().__init__(images, arguments)
        self.images, self.out = images, arguments.out
        self.script = str(Path(require_script(arguments.script)).resolve())

    def command(self, training: Training) -> tuple:
        steps, out = training.steps, training.folder / "run"
        words = script_arguments(self.images, self.make_unet(), training.folder / "network")
        epoch = math.ceil(sum(path.is_file() for path in self.images.rglob("*")) / BATCH)
        words += ["--resolution", 32, "--random_flip", "--num_epochs", math.ceil((steps + 1) / epoch)]
        words += ["--lr_warmup_steps", min(500, steps // 10), "--checkpointing_steps", steps, "--output_dir", out]
        words += ["--cache_dir", self.out / "datasets", *shlex.split(training.trial)]
        settings = {"script": self.script, "arguments": [*map(str, words)], "seed": training.seed, "steps": steps}
        return "file", PEERS, "run_script", json.dumps(settings)

    def sample(self, training: Training, file: Path, count: int) -> None:
        ema = UNet2DModel.from_pretrained(training.folder / "run" / f"checkpoint-{training.steps}" / "unet_ema")
        target = "sample" if "--prediction_type sample" in training.trial else "epsilon"
        DDPMPipeline(ema, DDPMScheduler(prediction_type=target)).save_pretrained(training.folder / "pipeline")
        self.sample_run(training.folder / "pipeline", training, file, count)


class Peer:
    """A program whose classes benchmarks/bakeoff_peers.py drives."""

    extra_steps, name, package = 0, "ddp", "denoising_diffusion_pytorch"

    def __init__(self, images: Path, arguments: Namespace):
        require_packages(self.package)
        self.images, self.checkout = images, {}

    def count_parameters(self) -> int:
        return int(self.run(f"count_{self.name}").split()[-1])

    def command(self, training: Training) -> tuple:
        settings = {"images": str(self.images), "steps": training.steps, "batch": BATCH} | self.describe(training)
        return "file", PEERS, f"train_{self.name}", json.dumps(self.checkout | settings)

    def sample(self, training: Training, file: Path, count: int) -> None:
        settings = {"file": str(file), "count": count, "evaluations": EVALUATIONS}
        self.run(f"sample_{self.name}", **settings, **self.describe(training))

    def describe(self, training: Training) -> dict:
        out = training.folder / "run"
        out.mkdir(exist_ok=True)
        return {"out": str(out), "seed": training.seed, "trial": parse_trial(training.trial)}

    def run(self, function: str, **settings: object) -> str:
        line = [sys.executable, PEERS, function, json.dumps(self.checkout | settings)]
        done = subprocess.run(line, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{function} of {self.name} failed:\n{done.stderr[-3000:]}")
        return done.stdout


class EDM(Peer):
    name, package = "edm", "psutil"

    def __init__(self, images: Path, arguments: Namespace):
        super().__init__(images, arguments)
        checkout = require_checkout(arguments.edm, "--edm", "training/training_loop.py")
        self.checkout = {"edm": str(checkout.resolve())}


PROGRAMS = {"diffusion_lit": DiffusionLit, "diffusers": Diffusers, "ddp": Peer, "edm": EDM}


def parse_trial(words: str) -> dict[str, object]:
    """Return the settings of "lr=0.001 precond=vp", numbers and booleans as such."""
    pairs = [word.split("=", 1) for word in shlex.split(words)]
    return {
        key: value if value.isidentifier() and value not in ("true", "false") else json.loads(value)
        for key, value in pairs
    }
