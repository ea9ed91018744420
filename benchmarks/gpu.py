"""`python -m benchmarks.gpu [small]`: training and sampling by the recipe of CIFAR-10 (35.7 M parameters) on a GPU, in
ways that differ in memory layout, precision and compilation. `small`: the digits instead, to try the command anywhere.

Images a second of the second half of a run, from its metrics.csv; the share of what this device multiplies large
matrices with, in the same precision. All ways train on the same draws, so their losses should agree.
"""

import csv
import re
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.growth import PLAIN
from benchmarks.measure import command, config_of, machine, table
from diffusion_lit.diffusion.seeds import image_seeds
from diffusion_lit.runs.build import make_network
from diffusion_lit.runs.load import TrainedModel

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
HALF = 100  # steps; the first half warms up and compiles
PHOTOS = ("data=synthetic", "data.image_size=32", "data.channels=3", "data.num_images=50000", "data.num_classes=10")
RECIPES = {"": ("experiment=cifar10_cond", *PHOTOS), "small": ("experiment=digits",)}
BF16, LAST = "strategy.precision=bf16-mixed", "strategy.channels_last=true"
WAYS = {
    "float32": (),
    "float32, channels_last": (LAST,),
    "bf16": (BF16,),
    "bf16, channels_last": (BF16, LAST),
    "bf16, channels_last, compile": (BF16, LAST, "strategy.compile=true"),
}


def trained(run: Path, *words: str) -> tuple[float, float, float]:
    """Images a second, GiB and the last loss of a run that is timed from its middle on."""
    command("train", *words, *PLAIN, "logger=none", f"max_steps={2 * HALF}", f"log_every={HALF}", f"run_dir={run}")
    with open(run / "metrics.csv", newline="") as file:
        middle, last = list(csv.DictReader(file))[-2:]
    images = HALF * config_of(*words)[0]["global_batch_size"]
    return images / (float(last["seconds"]) - float(middle["seconds"])), float(last["memory_gib"]), float(last["loss"])


def flops(*words: str) -> float:
    """Of one image forward and backward; a multiplication and its addition are two."""
    config, _ = config_of(*words)
    data, net = config["data"], make_network(config)
    x = torch.zeros(2, data["channels"], data["image_size"], data["image_size"])
    with FlopCounterMode(display=False) as counter:
        net(x, torch.zeros(2), torch.zeros(2, dtype=torch.int64)).sum().backward()
    return counter.get_total_flops() / 2


def peak(dtype: torch.dtype) -> float:
    """Operations a second of the product of two large matrices."""
    size, times = (8192, 30) if CUDA else (1024, 5)
    a = torch.randn(size, size, device=DEVICE, dtype=dtype)
    best = float("inf")
    for _ in range(times):
        synchronize()
        start = time.perf_counter()
        a @ a
        synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def synchronize() -> None:
    if CUDA:
        torch.cuda.synchronize()


def waits(run: Path) -> int:
    """How often the CPU waits for the GPU while one batch is denoised, its end not counted."""
    model = TrainedModel.from_run(run)
    labels = [0] * model.sampler.batch_size
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        model.generate(labels, image_seeds(0, len(labels)))
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in told) - 1


def main() -> None:
    recipe = RECIPES["small" if sys.argv[1:] == ["small"] else ""]
    print(machine(), torch.cuda.get_device_name() if CUDA else "no GPU", "\n", flush=True)
    needed = flops(*recipe)
    peaks = {dtype: peak(dtype) for dtype in (torch.float32, torch.bfloat16)}
    with tempfile.TemporaryDirectory() as name:
        home, rows = Path(name), []
        for told, words in WAYS.items():
            if not CUDA and BF16 in words:
                continue  # most processors have none: minutes
            rate, memory, loss = trained(home / f"run{len(rows)}", *recipe, *words)
            share = rate * needed / peaks[torch.bfloat16 if BF16 in words else torch.float32]
            rows.append([told, f"{rate:,.0f}", f"{share:.0%}", f"{memory:.1f} GiB", f"{loss:.4f}"])
            print(f"| {' | '.join(rows[-1])} |", flush=True)
        print()
        table(["", "img/s", "share of the device", "memory", "last loss"], rows)
        print()
        rows = []
        for words in ((), ("sampler=ddim", "sampler.steps=50")):
            printed, _ = command("sample", f"run={home / 'run0'}", "sampler.steps=20", *words, "num_images=512",
                                 f"out={home / f'made{len(rows)}'}")  # fmt: skip
            rows.append([" ".join(words) or "20 steps", re.search(r"([\d.,]+) img/s", printed)[1]])
        table(["sampling", "img/s"], rows)
        if CUDA:
            print(f"\nwaits for the GPU while a batch is denoised: {waits(home / 'run0')}")


if __name__ == "__main__":
    main()
