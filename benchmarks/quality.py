"""FD of unconditional digits over seconds of training, here and by diffusers' train_unconditional.py: each with its own
defaults of optimizer, learning rate, noise, prediction, weighting and EMA, with the same network, batch and images.

FD to the training digits in the features of `evaluate`'s classifier, 1,000 images, DDIM with 50 steps. The clock starts
at the first optimizer step, so decoding and start-up do not count.
"""

import tempfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image

from benchmarks.measure import compose_config, print_table, require_script, run_command
from benchmarks.peers import BATCH, script_arguments, time_steps
from diffusion_lit.data.store import load_splits
from diffusion_lit.evaluation.distances import frechet_distance
from diffusion_lit.evaluation.features import collect_real_images, make_classifier
from diffusion_lit.figures.style import BLUE, GRAY, ORANGE, create_axes, save_figure, set_log_scale
from diffusion_lit.runs.build import make_network

STEPS_HERE, STEPS_THERE = (150, 300, 600, 900, 1200), (300, 600, 1200, 2400)
SCRIPT_CHECKPOINTS = 300  # steps between two of its checkpoints
IMAGES = 1_000
Point = tuple[int, float, float, float, float]  # steps, seconds, FD, low, high


def train_here(home: Path, overrides: list[str]) -> Iterator[tuple[int, float, list[str]]]:
    """Yield steps, seconds, and the `sample` overrides of a checkpoint."""
    keep = [f"checkpoint_every={STEPS_HERE[0]}", "keep_checkpoints=99", "sample_every=0", "val_every=0"]
    length = [f"max_steps={STEPS_HERE[-1]}", f"run_dir={home / 'here'}"]
    times = time_steps(STEPS_HERE[-1], "module", "diffusion_lit.train", *overrides, *keep, *length, then="go on")
    for step in STEPS_HERE:
        yield step, times[step] - times[1], [f"run={home / 'here'}", f"checkpoint={step}"]


def train_script(home: Path, overrides: list[str], script: str) -> Iterator[tuple[int, float, list[str]]]:
    """Yield steps, seconds, and the `sample` overrides of the EMA of a checkpoint."""
    root = home / "images"
    arguments = script_arguments(root, make_network(compose_config(*overrides)[0]).unet, home / "network")
    epochs = BATCH * (STEPS_THERE[-1] + 60) // len(list(root.iterdir()))
    arguments += ["--resolution", 8, "--num_epochs", epochs, "--checkpointing_steps", SCRIPT_CHECKPOINTS]
    arguments += ["--output_dir", home / "there"]
    times = time_steps(STEPS_THERE[-1] + 1, "file", script, *arguments, then="go on")
    for step in STEPS_THERE:
        ema = UNet2DModel.from_pretrained(home / "there" / f"checkpoint-{step}" / "unet_ema")
        DDPMPipeline(ema, DDPMScheduler()).save_pretrained(home / f"pipeline-{step}")
        yield step, times[step] - times[1], [f"run={home / f'pipeline-{step}'}"]


def sample_images(home: Path, *overrides: str) -> np.ndarray:
    """Return generated images as gray uint8 (N, 1, H, W)."""
    out = tempfile.mkdtemp(dir=home) + "/samples"
    run_command("sample", *overrides, "sampler=ddim", "sampler.steps=50", f"num_images={IMAGES}", f"out={out}")
    files = sorted(Path(out).glob("[0-9]*.png"))
    gray = [np.asarray(Image.open(file).convert("RGB")).mean(-1).round() for file in files]
    return np.stack(gray).astype(np.uint8)[:, None]


def draw_curves(curves: dict[str, list[Point]], validation: float, path: Path) -> None:
    figure, ((ax,),) = create_axes(1, 1, "Unconditional digits: FD over seconds of training")
    for (name, points), color in zip(curves.items(), (BLUE, ORANGE), strict=True):
        _, seconds, fd, low, high = zip(*points, strict=True)
        ax.plot(seconds, fd, "o-", color=color, label=name)
        ax.fill_between(seconds, np.maximum(low, 0.01), high, color=color, alpha=0.2, linewidth=0)
    ax.axhline(validation, color=GRAY, linestyle="--", label="validation digits")
    ax.set_xlabel("seconds of training")
    ax.set_ylabel("FD to the training digits")
    set_log_scale(ax)
    ax.legend()
    save_figure(figure, path)


def measure_rows(home: Path, script: str, figure: Path | None) -> Iterator[list[object]]:
    config, source = compose_config()
    train, val = load_splits(source, config["data"])
    features = make_classifier(collect_real_images(train, val, config["data"], torch.device("cpu")))
    real = features(train.images)
    root = home / "images"
    root.mkdir()
    for k, image in enumerate(train.images):
        Image.fromarray(image[0]).save(root / f"{k}.png")
    # the recipe of the digits without their classes, in RGB as the script needs it
    overrides = ["experiment=digits", "data=image_folder", f"data.root={root}", "data.labels=none"]
    overrides += ["data.image_size=8", "data.channels=3", "data.flip=0", "data.val_fraction=0"]
    trained = {"here": train_here(home, overrides), "the script": train_script(home, overrides, script)}
    curves: dict[str, list[Point]] = {name: [] for name in trained}
    for name, checkpoints in trained.items():
        for step, seconds, sampled in checkpoints:
            fd = frechet_distance(features(sample_images(home, *sampled)), real).interval()
            curves[name].append((step, seconds, fd.value, fd.low, fd.high))
            yield [name, step, f"{seconds:.0f} s", f"{fd.value:.2f} ({fd.low:.2f} to {fd.high:.2f})"]
    validation = frechet_distance(features(val.images), real).value
    yield [f"{len(val)} validation digits", "", "", f"{validation:.2f}"]
    if figure:
        draw_curves(curves, validation, figure)


def main(arguments: Namespace) -> None:
    script = require_script(arguments.script)
    with tempfile.TemporaryDirectory() as home:
        print_table(["", "steps", "seconds of training", "FD"], measure_rows(Path(home), script, arguments.figure))
