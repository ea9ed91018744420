"""Throughput from the image store to what the network gets, decoding into the cache, and memory of a large data set."""

import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import compose_config, format_interval, print_table, read_memory, save_blurred_noise
from diffusion_lit.data.batches import Batches
from diffusion_lit.data.store import ImageStore, load_splits
from diffusion_lit.imaging.grids import to_float

BATCH = 128
COUNTS = (2_000, 50_000, 200_000)  # images: a small data set, one for throughput, a large one
JPEGS = 20_000
PRINT_MEMORY = "import sys; from benchmarks.data import print_memory; print_memory(*sys.argv[1:])"


def make_store(images: np.ndarray) -> ImageStore:
    return ImageStore(images, np.zeros(len(images), np.int64))


def write_mapped(folder: Path, count: int) -> Path:
    path = folder / f"{count}.npy"
    images = np.lib.format.open_memmap(path, "w+", np.uint8, (count, 3, 32, 32))
    images[:] = np.arange(32, dtype=np.uint8)
    images.flush()
    return path


def measure_rates(store: ImageStore, seconds: float = 2.0, rounds: int = 7) -> list[float]:
    """Return images per second from uint8 to float in [-1, 1]; one round more warms the pages up."""
    batches = iter(Batches(store, seed=0, batch_size=BATCH, step=lambda: 0))
    rates = []
    for _ in range(rounds + 1):
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < seconds / rounds:
            to_float(next(batches)["image"])
            count += BATCH
        rates.append(count / (time.perf_counter() - start))
    return rates[1:]


def print_memory(path: str, count: str) -> None:
    """Print the anonymous memory in MiB of this process after two epochs over a mapped array of images."""
    batches = iter(Batches(make_store(np.load(path, mmap_mode="r")), seed=0, batch_size=BATCH, step=lambda: 0))
    for _ in range(2 * int(count) // BATCH):
        to_float(next(batches)["image"])
    print(read_memory("RssAnon"))


def measure_rows(folder: Path) -> Iterator[list[str]]:
    small, middle, large = COUNTS
    images = np.zeros((middle, 3, 32, 32), np.uint8)
    yield [f"{middle:,} images from RAM", format_interval(measure_rates(make_store(images)), " img/s", 0)]
    images = np.load(write_mapped(folder, middle), mmap_mode="r")
    yield [f"{middle:,} images, memory-mapped", format_interval(measure_rates(make_store(images)), " img/s", 0)]
    root = save_blurred_noise(folder / "jpegs", JPEGS, 32, "jpg", classes=10)
    overrides = ("data=image_folder", f"data.root={root}", "data.image_size=32", "data.channels=3")
    config, source = compose_config(*overrides, f"data.cache_dir={folder / 'cache'}")
    start = time.perf_counter()
    load_splits(source, config["data"])
    yield [f"{JPEGS:,} JPEG files into the cache", f"{JPEGS / (time.perf_counter() - start):,.0f} img/s"]
    used = []
    for count in (small, large):
        command = [sys.executable, "-c", PRINT_MEMORY, str(write_mapped(folder, count)), str(count)]
        used.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    yield [f"anonymous memory, {large:,} mapped images against {small:,}", f"{used[1] - used[0]:+.0f} MiB"]


def main(arguments: Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        print_table(["images of 32x32x3", f"{torch.get_num_threads()} threads"], measure_rows(Path(folder)))
