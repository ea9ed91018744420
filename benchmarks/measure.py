"""Shared by all tables: medians with intervals, Markdown rows, configurations, commands and their memory."""

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from itertools import chain
from math import comb
from pathlib import Path

import numpy as np
from PIL import Image

from diffusion_lit.config.compose import compose_configs, resolve_data
from diffusion_lit.config.expand import expand_overrides


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the median and the order statistics that enclose it with 95 % probability, for any distribution.

    Of fewer than 6 values none do: they are the lowest and the highest, with a probability of 1 - 2 / 2^n.
    """
    ordered, n = sorted(values), len(values)
    outside, k = 0.0, 0  # probability that at most k of n values lie below the median
    while k < n // 2 and 2 * (outside := outside + comb(n, k) / 2**n) <= 0.05:
        k += 1
    return statistics.median(ordered), ordered[max(0, k - 1)], ordered[n - max(1, k)]


def format_interval(values: Sequence[float], unit: str = "", digits: int = 1) -> str:
    median, low, high = median_interval(values)
    return f"{median:,.{digits}f}{unit} ({low:,.{digits}f} to {high:,.{digits}f})"


def print_table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> None:
    """Print a Markdown table, each row as soon as the iterable yields it."""
    for row in chain((header, ["---"] * len(header)), rows):
        print("| " + " | ".join(map(str, row)) + " |", flush=True)


def compose_config(*overrides: str) -> tuple[dict, object]:
    """Return the resolved configuration of a `train` command line and its data source."""
    return resolve_data(compose_configs("train", expand_overrides(list(overrides), None))[0])


def run_command(command: str, *overrides: str) -> tuple[str, float]:
    """Return what a command of diffusion_lit prints and the peak resident memory of its process in MiB.

    The memory is polled from outside, because `getrusage` of a child begins with the memory of its parent.
    """
    peak = 0.0
    with tempfile.TemporaryFile("w+") as file:
        line = [sys.executable, "-m", f"diffusion_lit.{command}", *overrides]
        process = subprocess.Popen(line, stdout=file, stderr=subprocess.STDOUT)
        while process.poll() is None:
            with suppress(OSError, KeyError):  # the process has just ended
                peak = read_memory("VmHWM", process.pid)
            time.sleep(0.05)
        file.seek(0)
        output = file.read()
    if process.returncode:
        sys.exit(f"{command} {' '.join(overrides)} failed:\n{output[-3000:]}")
    return output, peak


def read_memory(field: str, pid: int | str = "self") -> float:
    """Return a memory field of /proc/<pid>/status in MiB."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines())
    return int(status[field].split()[0]) / 1024


def save_blurred_noise(folder: Path, count: int, size: int, suffix: str, classes: int = 1) -> Path:
    """Save `count` RGB images of `size` pixels, one subfolder for each of several classes; return the folder."""
    random = np.random.default_rng(0)
    for k in range(count):
        path = folder / (str(k % classes) if classes > 1 else "") / f"{k}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        noise.resize((size, size), Image.Resampling.BICUBIC).save(path, quality=90)
    return folder


class MissingRequirement(Exception):
    """A table needs a package or a file that is not there."""


def require_packages(*packages: str) -> None:
    if missing := [name for name in packages if find_spec(name) is None]:
        raise MissingRequirement(f"pip install {' '.join(missing).replace('_', '-')}")


def require_script(path: Path | None) -> str:
    """Return the path of diffusers' training script, which no package contains."""
    require_packages("accelerate")
    if path is None or not path.is_file():
        raise MissingRequirement("add --script <path of train_unconditional.py from diffusers' examples>")
    return str(path)


def describe_machine() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = [line for line in lines if line.startswith("model name")]
    cpu = models[0].partition(": ")[2] if models else platform.processor()
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning", "diffusers"))
    return f"{cpu}, {os.cpu_count()} cores; Python {platform.python_version()}, {packages}; {time.strftime('%Y-%m-%d')}"
