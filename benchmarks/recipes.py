"""First steps of the recipes that need a GPU: their whole networks on this machine, with few images a step.

They show that a recipe trains here as it stands, what it takes, and nothing about its images. Images are those of
--data, a folder, or blurred noise.
"""

import csv
import re
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import print_table, run_command, save_blurred_noise

RECIPES = (
    "cifar10_cond", "cifar10_snr_x0", "cifar10_snr_x0_faithful", "fer2013_cond", "celeba", "flowers",
    "flowers_faithful", "flowers_base", "flowers_base_faithful", "pokemon", "pokemon_faithful", "pixel_icons",
    "pixel_icons_faithful", "minecraft_skins", "minecraft_skins_faithful", "sprites_context",
    "sprites_context_faithful", "sprites_context_t1500", "sprites_context_t3000",
)  # fmt: skip
STEPS, IMAGES, MEAN = 20, 4, 5  # the loss is a mean of the first and of the last `MEAN` steps
SHORT = (
    "val_every=0", "data.val_fraction=0", "sample_every=0", "checkpoint_every=100000", "logger=none", "log_every=1",
    "sampler.steps=1", "max_epochs=null", f"max_steps={STEPS}", f"global_batch_size={IMAGES}", "strategy.accumulate=1",
    "lr_schedule=constant", "lr_schedule.warmup_steps=0",
)  # fmt: skip


def measure_recipe(name: str, images: Path, home: Path) -> list[str]:
    """Train the recipe for `STEPS` steps and return a row of the table."""
    data = ("data=image_folder", f"data.root={images}", f"run_dir={home / name}")
    output, memory = run_command("train", f"experiment={name}", *data, *SHORT)
    network = re.search(r"^network +(\w+), ([\d.]+ [MGk]) parameters", output, re.MULTILINE)
    size = re.search(r"^data .* images (\S+),", output, re.MULTILINE)
    with open(home / name / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    losses, seconds = ([float(row[key]) for row in rows] for key in ("train/loss", "seconds"))
    step = (seconds[-1] - seconds[MEAN]) / (len(rows) - 1 - MEAN)
    first, last = sum(losses[:MEAN]) / MEAN, sum(losses[-MEAN:]) / MEAN
    loss = f"{first:.3g} to {last:.3g}"
    return [f"`{name}`", f"{network[1]}, {network[2]}", size[1], f"{step:.2f} s", f"{memory / 1024:.1f} GiB", loss]


def measure_rows(images: Path | None) -> Iterator[list[str]]:
    for name in RECIPES:
        with tempfile.TemporaryDirectory() as home:  # a checkpoint of the largest has 1.7 GiB
            folder = images or save_blurred_noise(Path(home) / "images", 200, 64, "png", classes=5)
            yield measure_recipe(name, folder.resolve(), Path(home))


def main(arguments: Namespace) -> None:
    images = Path(arguments.data[0]) if arguments.data else None
    header = ["recipe", "network", "images", f"a step of {IMAGES} images", "peak memory", f"loss over {STEPS} steps"]
    print_table(header, measure_rows(images))
