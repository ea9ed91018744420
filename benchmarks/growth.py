"""Time and memory over data set size, image size, batch size, processes, and number of generated images."""

import csv
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.measure import print_table, run_command
from benchmarks.sampling import measure_sampling

TINY_UNET = (
    "model=unet_digits", "model.block_out_channels=[8,16]", "model.norm_num_groups=4", "model.attention_levels=[]",
    "model.layers_per_block=1",
)  # fmt: skip
STEPS_ONLY = ("data.classifier_images=0", "val_every=0", "sample_every=0", "checkpoint_every=100000")
SIZES, BATCHES, PROCESSES = (16, 32, 64, 128), (16, 64, 256), (1, 2)
COUNTS, SAMPLES = (2_000, 20_000, 200_000), (100, 1_000, 10_000)


def measure_step(folder: Path, steps: int, *overrides: str) -> tuple[float, float]:
    """Return milliseconds of a training step, from the second half of a run, and peak resident memory in MiB."""
    length = (f"max_steps={steps}", f"log_every={steps // 2}", f"run_dir={folder}", "sampler.steps=2")
    _, memory = run_command("train", *STEPS_ONLY, *length, *overrides)
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        first, last = [float(row["seconds"]) for row in csv.DictReader(file)][-2:]
    return 1000 * (last - first) / (steps - steps // 2), memory


def array_overrides(home: Path, count: int, size: int) -> tuple[str, ...]:
    """Save an array of images; return the overrides of a run that trains a tiny UNet on it."""
    path = home / f"{count}-{size}.npy"
    images = np.lib.format.open_memmap(path, "w+", np.uint8, (count, size, size, 3))
    images[:] = np.arange(size, dtype=np.uint8)[:, None]
    images.flush()
    data = ("data=arrays", f"data.images={path}", "data.labels=none", f"data.image_size={size}", "data.channels=3")
    return ("experiment=none", *data, *TINY_UNET, f"data.cache_dir={home / 'cache'}")


def measure_training(home: Path) -> Iterator[list[str]]:
    def measure_row(name: str, *overrides: str, steps: int = 20) -> list[str]:
        milliseconds, memory = measure_step(Path(tempfile.mkdtemp(dir=home)) / "run", steps, *overrides)
        return [name, f"{milliseconds:.1f} ms", f"{memory:,.0f} MiB"]

    small = COUNTS[0]
    for count in COUNTS:
        yield measure_row(f"{count:,} images of 32x32, memory-mapped", *array_overrides(home, count, 32), steps=60)
    for size in SIZES:
        yield measure_row(f"{size}x{size}, batch of 64", *array_overrides(home, small, size))
    for batch in BATCHES:
        overrides = (*array_overrides(home, small, 32), f"global_batch_size={batch}")
        yield measure_row(f"32x32, batch of {batch}", *overrides)
    for count in PROCESSES:
        strategy = ("strategy=ddp", f"strategy.devices={count}", "strategy.accelerator=cpu")
        yield measure_row(f"32x32, batch of 64, {count} process(es)", *array_overrides(home, small, 32), *strategy)


def measure_generating(home: Path) -> Iterator[list[str]]:
    run = home / "digits"
    run_command("train", f"run_dir={run}", *STEPS_ONLY, "max_steps=20")
    for count in SAMPLES:
        rate, memory = measure_sampling(f"run={run}", f"num_images={count}", f"out={home / f'sampled-{count}'}")
        yield [f"{count:,} digits", f"{count / rate:.1f} s", f"{memory:,.0f} MiB"]


def main(arguments: Namespace) -> None:
    with tempfile.TemporaryDirectory() as home:
        print_table(["training, network of 0.04 M", "a step", "peak memory"], measure_training(Path(home)))
        print()
        print_table(["generating", "time", "peak memory"], measure_generating(Path(home)))
