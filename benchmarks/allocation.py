"""Speed and peak memory of `train` with the allocators of the C library: as `train` sets up glibc, as glibc is by
itself, and tcmalloc where it is installed.

Each program is a whole `train` with one validation batch and one preview at its end; they run in turns. Seconds per
step are from the 3rd optimizer step to the last. A ratio above 1 is faster than glibc by itself. The memory is the
peak of the process, validation and preview included.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from ctypes.util import find_library
from typing import NamedTuple

from benchmarks.measure import format_interval, print_table
from diffusion_lit.system.platform import ALLOCATOR

FIRST = 2
HEADER = ["", "allocator", "img/s", "ratio", "page faults", "peak memory", "more than glibc by itself", "rounds"]
CASES = {  # name: (pixels, images of a batch, steps, rounds); meant to take about seven minutes on two idle cores
    "1.1 M, 32x32": (32, 64, 12, 3),
    "1.1 M, 64x64": (64, 32, 8, 3),
    "1.6 M, 128x128": (128, 8, 8, 3),
}
MEASURE = """
import json, resource, runpy, sys, time
from torch.optim.optimizer import register_optimizer_step_post_hook
times = []
register_optimizer_step_post_hook(lambda *_: times.append(time.perf_counter()))
try:
    runpy.run_module("diffusion_lit.train", run_name="__main__", alter_sys=True)
finally:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    print("measured", json.dumps([times, usage.ru_minflt, int(status["VmHWM"].split()[0]) / 1024]), flush=True)
"""
BEFORE_TORCH = "from diffusion_lit.system.platform import keep_freed_memory; keep_freed_memory()"


class Trial(NamedTuple):
    """Images per second, page faults and peak memory in MiB of one `train`."""

    speed: float
    faults: int
    peak: float


def train_overrides(pixels: int, batch: int, steps: int) -> list[str]:
    data = [f"data.image_size={pixels}", "data.channels=3", "data.num_images=600", "data.num_classes=2"]
    layers = ["model.layers_per_block=1"] if pixels < 128 else []
    length = [f"max_steps={steps}", "val_every=100000", "sample_every=100000", "checkpoint_every=100000"]
    rest = ["trainer.limit_val_batches=1", "sampler.steps=2", "data.classifier_images=0", "logger=none"]
    return ["data=synthetic", *data, "model=unet_small", *layers, f"global_batch_size={batch}", *length, *rest]


def measure(environment: dict[str, str], overrides: list[str], batch: int) -> Trial:
    """Run `train` with more environment variables and return its measurements."""
    with tempfile.TemporaryDirectory() as folder:
        line = [sys.executable, "-c", f"{BEFORE_TORCH}\n{MEASURE}", *overrides, f"run_dir={folder}/run"]
        done = subprocess.run(line, env=os.environ | environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"train {' '.join(overrides)} failed:\n{done.stdout[-1000:]}{done.stderr[-3000:]}")
    times, faults, peak = json.loads(done.stdout.rpartition("measured ")[2].splitlines()[0])
    return Trial(batch * (len(times) - 1 - FIRST) / (times[-1] - times[FIRST]), faults, peak)


def list_allocators() -> dict[str, dict[str, str]]:
    """Return the environment variables of each allocator, glibc by itself first."""
    found = {"glibc by itself": {ALLOCATOR: "system"}, "as `train` is": {}}
    names = filter(None, map(find_library, ("tcmalloc_minimal", "tcmalloc")))
    return found | {name: {ALLOCATOR: "system", "LD_PRELOAD": name} for name in [*names][:1]}


def measure_rows() -> Iterator[list[object]]:
    for name, (pixels, batch, steps, rounds) in CASES.items():
        allocators, overrides = list_allocators(), train_overrides(pixels, batch, steps)
        trials: dict[str, list[Trial]] = {allocator: [] for allocator in allocators}
        for k in range(rounds):
            for allocator in [*allocators][:: -1 if k % 2 else 1]:
                trials[allocator].append(measure(allocators[allocator], overrides, batch))
        (plain, base), *_ = trials.items()
        for allocator, values in trials.items():
            pairs = [*zip(values, base, strict=True)]
            is_base = allocator == plain
            yield [
                name,
                allocator,
                f"{statistics.median(one.speed for one in values):,.1f}",
                "1" if is_base else format_interval([one.speed / other.speed for one, other in pairs], "", 2),
                f"{statistics.median(one.faults for one in values) / 1e6:.2f} M",
                f"{statistics.median(one.peak for one in values):,.0f} MiB",
                "" if is_base else format_interval([one.peak - other.peak for one, other in pairs], " MiB", 0),
                rounds,
            ]


def main(arguments: Namespace) -> None:
    print_table(HEADER, measure_rows())
