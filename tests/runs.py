"""Real runs for tests: the commands as a user types them, on a network small enough for seconds."""

import csv
import os
import re
import signal
import time
from pathlib import Path

from tests.forks import Process

TINY = [
    "model.block_out_channels=[8,8]",
    "model.norm_num_groups=4",
    "model.attention_head_dim=8",
    "model.attention_levels=[]",
    "model.layers_per_block=1",
    "global_batch_size=12",
    "sampler.steps=2",
    "sampler.batch_size=80",  # all of a preview
    "data.classifier_images=0",
    "strategy.precision=32-true",  # so that the tests are the same on a CPU that multiplies bfloat16 fast
    "log_every=1",
]
CLOCKS = ("images_per_second", "seconds", "memory_gib")  # columns of metrics.csv that differ between equal runs


def start(verb: str, *overrides: str, cwd: Path, prelude: str = "") -> Process:
    return start_module(f"diffusion_lit.{verb}", *overrides, cwd=cwd, prelude=prelude)


def start_module(module: str, *arguments: str, cwd: Path, prelude: str = "") -> Process:
    env = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return Process([module, *arguments], cwd, env, prelude)


def run(verb: str, *overrides: str, cwd: Path, code: int = 0, prelude: str = "") -> str:
    """Return standard output and error of a command that must end with `code`."""
    return run_module(f"diffusion_lit.{verb}", *overrides, cwd=cwd, code=code, prelude=prelude)


def run_module(module: str, *arguments: str, cwd: Path, code: int = 0, prelude: str = "") -> str:
    """Return what `python -m module` prints, which must end with `code`."""
    process = start_module(module, *arguments, cwd=cwd, prelude=prelude)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == code, f"exit {process.returncode}:\n{output}"
    return output


def address_of(page: Process) -> str:
    """The address that an `app` prints, within two minutes."""
    until = time.monotonic() + 120
    while not (found := re.search(r"http://127\.0\.0\.1:\d+", page.so_far())):
        assert page.poll() is None, page.communicate()[0]
        assert time.monotonic() < until, page.so_far()
        time.sleep(0.1)
    return found[0]


def signal_at_step(step: int, process: Process, folder: Path, number: int = signal.SIGKILL, delay: float = 0.0) -> int:
    """Send a signal `delay` seconds after metrics.csv shows `step`; returns the exit code, negative for a signal that
    killed it."""
    while process.poll() is None and last_step(folder) < step:
        time.sleep(0.002)
    time.sleep(delay)
    process.send_signal(number)
    process.communicate(timeout=120)
    return process.returncode


def last_step(folder: Path) -> int:
    try:
        lines = (folder / "metrics.csv").read_text().splitlines()
        return int(lines[-1].split(",")[0])
    except (OSError, IndexError, ValueError):
        return 0


def trace(folder: Path) -> list[dict[str, str]]:
    """metrics.csv without the clock."""
    with open(folder / "metrics.csv", newline="") as file:
        return [{key: value for key, value in row.items() if key not in CLOCKS} for row in csv.DictReader(file)]
