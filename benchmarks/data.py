"""The path of the pictures: into the cache, and from there to the training step."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import anonymous_memory, config_of, interval, table
from diffusion_lit.data.store import ImageStore, load_splits
from diffusion_lit.data.stream import Batches
from diffusion_lit.imaging.grids import to_float

BATCH = 128


def rate(store: ImageStore, seconds: float = 2.0, rounds: int = 7) -> tuple[float, float, float]:
    """Images a second from uint8 pictures to what the network is given: float, in [-1, 1]."""
    batches = iter(Batches(store, seed=0, batch_size=BATCH, step=lambda: 0))
    rates = []
    for _ in range(rounds + 1):
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < seconds / rounds:
            to_float(next(batches)["image"])
            count += BATCH
        rates.append(count / (time.perf_counter() - start))
    return interval(rates[1:])  # the first one warms the pages up


def mapped(folder: Path, count: int) -> ImageStore:
    path = folder / f"{count}.npy"
    images = np.lib.format.open_memmap(path, "w+", np.uint8, (count, 3, 32, 32))
    images[:] = np.arange(32, dtype=np.uint8)
    images.flush()
    return ImageStore(np.load(path, mmap_mode="r"), np.zeros(count, np.int64))


def jpegs(folder: Path, count: int) -> Path:
    from PIL import Image

    random = np.random.default_rng(0)
    for k in range(count):
        file = folder / f"{k % 10}" / f"{k}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        small = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(small).resize((32, 32)).save(file, quality=90)
    return folder


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, rows = Path(name), []
        ram = ImageStore(np.zeros((50_000, 3, 32, 32), np.uint8), np.zeros(50_000, np.int64))
        for told, store in (("50,000 from RAM", ram), ("50,000 from the map", mapped(folder, 50_000))):
            middle, low, high = rate(store)
            rows.append([f"{told}, 32x32x3", f"{middle:,.0f} img/s ({low:,.0f} to {high:,.0f})"])
        pictures = jpegs(folder / "jpegs", 20_000)
        words = ("data=image_folder", f"data.root={pictures}", "data.image_size=32", "data.channels=3")
        config, source = config_of(*words, f"data.cache_dir={folder / 'cache'}")
        start = time.perf_counter()
        load_splits(source, config["data"])
        rows.append(["20,000 JPEGs of 32 px into the cache", f"{20_000 / (time.perf_counter() - start):,.0f} img/s"])
        used = {count: in_a_process(folder, count) for count in (2_000, 200_000)}
        more = used[200_000] - used[2_000]
        rows.append(["anonymous memory, 200,000 beside 2,000 on the map", f"{more:+.0f} MiB"])
        table(["", f"{torch.get_num_threads()} threads"], rows)


def in_a_process(folder: Path, count: int) -> float:
    """MiB of anonymous memory of a process that went twice through so many pictures of a map."""
    mapped(folder, count)
    code = (
        "import sys; from pathlib import Path; from benchmarks.data import passes;"
        " print(passes(Path(sys.argv[1]), int(sys.argv[2])))"
    )
    words = [sys.executable, "-c", code, str(folder), str(count)]
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def passes(folder: Path, count: int) -> float:
    store = ImageStore(np.load(folder / f"{count}.npy", mmap_mode="r"), np.zeros(count, np.int64))
    batches = iter(Batches(store, seed=0, batch_size=BATCH, step=lambda: 0))
    for _ in range(2 * count // BATCH):
        to_float(next(batches)["image"])
    return anonymous_memory()
