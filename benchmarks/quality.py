"""How good digits are after so many seconds of training without classes, here and by diffusers' script, each with its
own defaults of optimizer, rate, noise, prediction, weighting and average; the same network, batch and pictures. With
one more word, `python -m benchmarks quality <script> <picture.png>`, a picture of it.

FD in the features of the judge of `evaluate`, to the training digits; 1,000 images each, DDIM, 50 steps. The clock runs
from the first optimizer step on, so that decoding and starting do not count.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image

from benchmarks.measure import command, config_of, script, table
from benchmarks.peers import script_words, seconds
from diffusion_lit.data.store import load_splits
from diffusion_lit.evaluation.distances import frechet_distance
from diffusion_lit.evaluation.features import classifier, pictures_of
from diffusion_lit.figures.style import BLUE, GREY, ORANGE, logarithmic, plots, save
from diffusion_lit.runs.build import make_network

OURS, THEIRS = (150, 300, 600, 900, 1200), (300, 600, 1200, 2400)  # optimizer steps


def main() -> None:
    path = script()
    config, source = config_of()
    train, val = load_splits(source, config["data"])
    judge = classifier(pictures_of(train, val, config["data"], torch.device("cpu")))
    real = judge(train.images)

    def fd(*words: str) -> tuple[float, float, float]:
        out = home / f"made{len(list(home.glob('made*')))}"
        command("sample", *words, "sampler=ddim", "sampler.steps=50", "num_images=1000", f"out={out}")
        files = sorted(out.glob("[0-9]*.png"))
        images = np.stack([np.asarray(Image.open(file).convert("RGB")).mean(-1).round() for file in files])
        found = frechet_distance(judge(images.astype(np.uint8)[:, None]), real)[0]
        return found.value, found.low, found.high

    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        folder = home / "pictures"
        folder.mkdir()
        for k, image in enumerate(train.images):
            Image.fromarray(image[0]).save(folder / f"{k}.png")
        curves = {
            "here": [(taken, *fd(*words)) for taken, words in of_ours(home, folder)],
            "the script": [(taken, *fd(*words)) for taken, words in of_the_script(home, folder, path)],
        }
    held_out = frechet_distance(judge(val.images), real)[0].value
    rows = [
        [who, step, f"{taken:.0f} s", f"{value:.2f} ({low:.2f} to {high:.2f})"]
        for (who, points), steps in zip(curves.items(), (OURS, THEIRS), strict=True)
        for step, (taken, value, low, high) in zip(steps, points, strict=True)
    ]
    rows.append([f"{len(val)} held-out digits", "", "", f"{held_out:.2f}"])
    table(["", "steps", "seconds of training", "FD"], rows)
    for word in sys.argv[1:]:
        if word.endswith(".png"):
            draw(curves, held_out, Path(word))


def of_ours(home: Path, folder: Path) -> list[tuple[float, list[str]]]:
    """Seconds until a checkpoint, and the words that sample it."""
    words = [*words_of(folder), "checkpoint_every=150", "keep_checkpoints=99", "sample_every=0", "val_every=0"]
    times = seconds(max(OURS), "module", "diffusion_lit.train", *words, f"run_dir={home / 'ours'}", then="go on")
    return [(times[step] - times[1], [f"run={home / 'ours'}", f"checkpoint={step}"]) for step in OURS]


def of_the_script(home: Path, folder: Path, path: str) -> list[tuple[float, list[str]]]:
    config, _ = config_of(*words_of(folder))
    words = [*script_words(folder, make_network(config).unet, home / "network"), "--resolution", 8]
    words += ["--num_epochs", 64 * (max(THEIRS) + 60) // len(list(folder.iterdir())), "--checkpointing_steps", 300]
    times = seconds(max(THEIRS) + 1, "file", path, *map(str, words), "--output_dir", str(home / "theirs"))
    found = []
    for step in THEIRS:
        average = UNet2DModel.from_pretrained(home / "theirs" / f"checkpoint-{step}" / "unet_ema")
        DDPMPipeline(average, DDPMScheduler()).save_pretrained(home / f"pipeline{step}")
        found.append((times[step] - times[1], [f"run={home / f'pipeline{step}'}"]))
    return found


def words_of(folder: Path) -> list[str]:
    """The recipe of the digits, without their classes; the script makes its pictures RGB."""
    words = ["experiment=digits", "data=image_folder", f"data.root={folder}", "data.labels=none", "data.image_size=8"]
    return [*words, "data.channels=3", "data.flip=0", "data.val_fraction=0"]


def draw(curves: dict[str, list[tuple]], held_out: float, path: Path) -> None:
    figure, ((ax,),) = plots(1, 1, "Digits without classes: FD over seconds of training")
    for (name, points), colour in zip(curves.items(), (BLUE, ORANGE), strict=True):
        taken, value, low, high = zip(*points, strict=True)
        ax.plot(taken, value, "o-", color=colour, label=name)
        ax.fill_between(taken, [max(one, 0.01) for one in low], high, color=colour, alpha=0.2, linewidth=0)
    ax.axhline(held_out, color=GREY, linestyle="--", label="held-out digits")
    ax.set_xlabel("seconds of training")
    ax.set_ylabel("FD to the training digits")
    logarithmic(ax)
    ax.legend()
    save(figure, path)
