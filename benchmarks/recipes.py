"""First steps of the recipes that need a GPU: their whole networks on this machine, with few images a step.

They show that a recipe trains here as it stands, what it takes, and nothing about its images. Images are those of
--data, a folder, or blurred noise. The process ends at its last optimizer step, so it draws no preview and saves no
checkpoint, and the peak of its memory is that of training.
"""

import csv
import re
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.measure import print_table, save_blurred_noise
from benchmarks.peers import run_steps

RECIPES = (
    "cifar10_cond", "cifar10_snr_x0", "cifar10_snr_x0_faithful", "fer2013_cond", "celeba", "flowers",
    "flowers_faithful", "flowers_base", "flowers_base_faithful", "pokemon", "pokemon_faithful", "pixel_icons",
    "pixel_icons_faithful", "minecraft_skins", "minecraft_skins_faithful", "sprites_context",
    "sprites_context_faithful", "sprites_context_t1500", "sprites_context_t3000",
)  # fmt: skip
STEPS, IMAGES, MEAN = 20, 4, 5  # the loss is a mean of the first and of the last `MEAN` steps
SHORT = (
    "val_every=0", "data.val_fraction=0", "sample_every=0", "checkpoint_every=100000", "logger=none", "log_every=1",
    "sampler.steps=1", "max_epochs=null", f"max_steps={2 * STEPS}", f"global_batch_size={IMAGES}",
    "strategy.accumulate=1", "lr_schedule=constant", "lr_schedule.warmup_steps=0",
)  # fmt: skip


def measure_recipe(name: str, images: Path, home: Path) -> list[str]:
    """Train the recipe for `STEPS` steps and return a row of the table."""
    data = ("data=image_folder", f"data.root={images}", f"run_dir={home / name}")
    # the row of a step is written after it, so the process ends a step later
    times, output = run_steps(STEPS + 1, "module", "diffusion_lit.train", f"experiment={name}", *data, *SHORT)
    network = re.search(r"^network +(\w+), ([\d.]+ [MGk]) parameters", output, re.MULTILINE)
    size = re.search(r"^data .* images (\S+),", output, re.MULTILINE)
    with open(home / name / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]][:STEPS]
    losses, memory = [float(row["train/loss"]) for row in rows], float(rows[-1]["memory_gib"])
    step = (times[STEPS] - times[MEAN]) / (STEPS - MEAN)
    first, last = sum(losses[:MEAN]) / MEAN, sum(losses[-MEAN:]) / MEAN
    loss = f"{first:.3g} to {last:.3g}"
    return [f"`{name}`", f"{network[1]}, {network[2]}", size[1], f"{step:.2f} s", f"{memory:.1f} GiB", loss]


def measure_rows(names: Sequence[str], images: Path | None) -> Iterator[list[str]]:
    for name in names:
        with tempfile.TemporaryDirectory() as home:
            folder = images or save_blurred_noise(Path(home) / "images", 200, 64, "png", classes=5)
            yield measure_recipe(name, folder.resolve(), Path(home))


def main(arguments: Namespace) -> None:
    images = Path(arguments.data[0]) if arguments.data else None
    names = arguments.only or RECIPES
    if unknown := [name for name in names if name not in RECIPES]:
        sys.exit(f"--only {' '.join(unknown)}: not a recipe of this table. Choose from {', '.join(RECIPES)}")
    header = ["recipe", "network", "images", f"a step of {IMAGES} images", "peak memory", f"loss over {STEPS} steps"]
    print_table(header, measure_rows(names, images))
