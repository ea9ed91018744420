"""Seconds and memory over the number of pictures, their size, the batch, processes, and generated images."""

import csv
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.measure import command, table
from benchmarks.sampling import sampled

SMALL = (
    "model.block_out_channels=[8,16]",
    "model.norm_num_groups=4",
    "model.attention_levels=[]",
    "model.layers_per_block=1",
)
PLAIN = ("data.judge_images=0", "val_every=0", "sample_every=0", "checkpoint_every=100000", "sampler.steps=2")


def step(folder: Path, steps: int, *words: str) -> tuple[float, float]:
    """Milliseconds of a training step of the second half of a run, and its largest memory, MiB."""
    length = (f"max_steps={steps}", f"log_every={steps // 2}", f"run_dir={folder}")
    _, memory = command("train", *PLAIN, *length, *words)
    with open(folder / "metrics.csv", newline="") as file:
        first, last = [float(row["seconds"]) for row in csv.DictReader(file)][-2:]
    return 1000 * (last - first) / (steps - steps // 2), memory


def arrays(folder: Path, count: int, size: int) -> tuple[str, ...]:
    path = folder / f"{count}-{size}.npy"
    pictures = np.lib.format.open_memmap(path, "w+", np.uint8, (count, size, size, 3))
    pictures[:] = np.arange(size, dtype=np.uint8)[:, None]
    pictures.flush()
    words = ("experiment=none", "data=arrays", f"data.images={path}", "data.labels=none", f"data.image_size={size}")
    return (*words, "data.channels=3", "model=unet_digits", *SMALL, f"data.cache_dir={folder / 'cache'}")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        table(["training", "a step", "largest memory"], trained(Path(name)))
        print()
        table(["generating", "time", "largest memory"], generated(Path(name)))


def trained(home: Path) -> Iterator[list[str]]:
    def row(told: str, *words: str, steps: int = 20) -> list[str]:
        taken, memory = step(Path(tempfile.mkdtemp(dir=home)) / "run", steps, *words)
        return [told, f"{taken:.1f} ms", f"{memory:,.0f} MiB"]

    for count in (2_000, 20_000, 200_000):
        yield row(f"{count:,} pictures of 32x32 px on the map", *arrays(home, count, 32), steps=60)
    for size in (16, 32, 64, 128):
        yield row(f"{size}x{size} px, batch of 64", *arrays(home, 2_000, size))
    for batch in (16, 64, 256):
        yield row(f"batch of {batch}, 32x32 px", *arrays(home, 2_000, 32), f"global_batch_size={batch}")
    for count in (1, 2):
        ranks = ("strategy=ddp", f"strategy.devices={count}", "strategy.accelerator=cpu")
        yield row(f"{count} processes, batch of 64, 32x32 px", *arrays(home, 2_000, 32), *ranks)


def generated(home: Path) -> Iterator[list[str]]:
    run = home / "digits"
    command("train", f"run_dir={run}", *PLAIN[:-1], "max_steps=20")
    for count in (100, 1_000, 10_000):
        rate, memory = sampled(f"run={run}", f"num_images={count}", f"out={home / f'made{count}'}")
        yield [f"{count:,} digits", f"{count / rate:.1f} s", f"{memory:,.0f} MiB"]
