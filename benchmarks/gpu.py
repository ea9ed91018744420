"""Training and sampling on a GPU by the CIFAR-10 recipe (35.7 M parameters) with several memory layouts, precisions and
compilation; the digits in float32 where there is no GPU.

Images per second are those of the second half of a run, from its metrics.csv, and given also as a share of the
device's own matrix product in the same precision. All runs see the same draws, so their losses should agree.
"""

import csv
import re
import tempfile
import time
import warnings
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.growth import STEPS_ONLY
from benchmarks.measure import compose_config, print_table, run_command
from diffusion_lit.diffusion.seeds import image_seeds
from diffusion_lit.runs.build import make_network
from diffusion_lit.runs.load import TrainedModel

HAS_GPU = torch.cuda.is_available()
DEVICE, synchronize = ("cuda", torch.cuda.synchronize) if HAS_GPU else ("cpu", lambda: None)
STEPS = 200  # the first half warms up and compiles
IMAGES = 512
CIFAR = ("experiment=cifar10_cond", "data=synthetic", "data.image_size=32", "data.channels=3", "data.num_images=50000",
         "data.num_classes=10")  # fmt: skip
RECIPE = CIFAR if HAS_GPU else ("experiment=digits",)
BF16, CHANNELS_LAST = "strategy.precision=bf16-mixed", "strategy.channels_last=true"
VARIANTS = {
    "float32": (),
    "float32, channels_last": (CHANNELS_LAST,),
    "bf16": (BF16,),
    "bf16, channels_last": (BF16, CHANNELS_LAST),
    "bf16, channels_last, compile": (BF16, CHANNELS_LAST, "strategy.compile=true"),
}


def train(run: Path, *overrides: str) -> tuple[float, float, float]:
    """Return images per second of the second half of a run, its peak memory in GiB and its last loss."""
    length = (f"max_steps={STEPS}", f"log_every={STEPS // 2}", f"run_dir={run}")
    run_command("train", *RECIPE, *overrides, *STEPS_ONLY, "logger=none", *length)
    with open(run / "metrics.csv", newline="", encoding="utf-8") as file:
        middle, last = list(csv.DictReader(file))[-2:]
    images = (STEPS - STEPS // 2) * compose_config(*RECIPE)[0]["global_batch_size"]
    rate = images / (float(last["seconds"]) - float(middle["seconds"]))
    return rate, float(last["memory_gib"]), float(last["train/loss"])


def count_flops() -> float:
    """Return the floating-point operations of one image, forward and backward."""
    config, _ = compose_config(*RECIPE)
    data, net = config["data"], make_network(config)
    x = torch.zeros(2, data["channels"], data["image_size"], data["image_size"])
    with FlopCounterMode(display=False) as counter:
        net(x, torch.zeros(2), torch.zeros(2, dtype=torch.int64)).sum().backward()
    return counter.get_total_flops() / 2


def measure_peak(dtype: torch.dtype) -> float:
    """Return the operations per second of a product of two large matrices."""
    size, repeats = (8192, 30) if HAS_GPU else (1024, 5)
    a = torch.randn(size, size, device=DEVICE, dtype=dtype)
    best = float("inf")
    for _ in range(repeats):
        synchronize()
        start = time.perf_counter()
        a @ a
        synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def count_synchronizations(run: Path) -> int:
    """Return how often the CPU waits for the GPU while one batch is denoised, without the final copy."""
    model = TrainedModel.from_run(run)
    labels = [0] * model.sampler.batch_size
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        model.generate(labels, image_seeds(0, len(labels)))
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught) - 1


def measure_training(home: Path) -> Iterator[list[str]]:
    flops = count_flops()
    for name, overrides in VARIANTS.items():
        if BF16 in overrides and not HAS_GPU:
            continue  # emulated on most CPUs, minutes a step
        rate, memory, loss = train(home / name.replace(", ", "-"), *overrides)
        share = rate * flops / measure_peak(torch.bfloat16 if BF16 in overrides else torch.float32)
        yield [name, f"{rate:,.0f}", f"{share:.0%}", f"{memory:.1f} GiB", f"{loss:.4f}"]


def measure_sampling(home: Path) -> Iterator[list[str]]:
    for overrides in (("sampler.steps=20",), ("sampler=ddim", "sampler.steps=50")):
        out = tempfile.mkdtemp(dir=home)
        output, _ = run_command("sample", f"run={home / 'float32'}", *overrides, f"num_images={IMAGES}", f"out={out}/s")
        yield [f"`{' '.join(overrides)}`", re.search(r"([\d.,]+) img/s", output)[1]]


def main(arguments: Namespace) -> None:
    print(torch.cuda.get_device_name() if HAS_GPU else "no GPU: the digits in float32", "\n", flush=True)
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        print_table(["training", "img/s", "share of the device", "memory", "last loss"], measure_training(home))
        print()
        print_table(["sampling", "img/s"], measure_sampling(home))
        if HAS_GPU:
            print(f"\nsynchronizations while a batch is denoised: {count_synchronizations(home / 'float32')}")
