"""What all tables share: medians with intervals, configurations from words, the machine."""

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from math import comb
from pathlib import Path

from diffusion_lit.config import composed, with_data_facts
from diffusion_lit.train import expanded

# VmHWM, not getrusage's ru_maxrss: a child starts with that of the process which started it
PEAK = """
import atexit, runpy, sys
def peak():
    with open("/proc/self/status") as file:
        print("peak", *[int(line.split()[1]) / 1024 for line in file if line.startswith("VmHWM")])
atexit.register(peak)
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, and the order statistics between which it lies with 95 % probability, whatever the distribution."""
    ordered, n = sorted(values), len(values)
    outside, k = 0.0, 0  # P(at most k of n values below the median)
    while k < n // 2 and 2 * (outside := outside + comb(n, k) / 2**n) <= 0.05:
        k += 1
    return statistics.median(ordered), ordered[max(0, k - 1)], ordered[n - max(1, k)]


def shown(values: Sequence[float], unit: str = "", digits: int = 1) -> str:
    middle, low, high = interval(values)
    return f"{middle:,.{digits}f}{unit} ({low:,.{digits}f} to {high:,.{digits}f})"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    for row in (head, ["---"] * len(head), *rows):
        print("| " + " | ".join(map(str, row)) + " |", flush=True)


def config_of(*words: str) -> tuple[dict, object]:
    """The resolved configuration of a `train` command line, and its source of pictures."""
    return with_data_facts(composed("train", expanded(list(words), None))[0])


def command(verb: str, *words: str) -> tuple[str, float]:
    """What a command of ours prints, and the largest resident memory of its process, MiB."""
    run = [sys.executable, "-c", PEAK, f"diffusion_lit.{verb}", *words]
    done = subprocess.run(run, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"{verb} {' '.join(words)} failed:\n{done.stdout[-3000:]}")
    printed, _, memory = done.stdout.rpartition("peak ")
    return printed, float(memory)


def anonymous_memory(pid: int | str = "self") -> float:
    """MiB that a process holds itself, without files that are mapped."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) / 1024


class Absent(Exception):
    """What a table needs is not here."""


def need(*packages: str) -> None:
    if missing := [name for name in packages if find_spec(name) is None]:
        raise Absent(f"pip install {' '.join(missing).replace('_', '-')}")


def script() -> str:
    """diffusers' examples/unconditional_image_generation/train_unconditional.py, of which no package has a copy."""
    need("accelerate")
    for word in sys.argv[1:]:
        if word.endswith(".py") and Path(word).is_file():
            return word
    raise Absent("its last word must be the path of train_unconditional.py, of diffusers' examples")


def machine() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    cpu = names[0].partition(": ")[2] if names else platform.processor()
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning", "diffusers"))
    return f"{cpu}, {os.cpu_count()} cores; Python {platform.python_version()}, {packages}; {time.strftime('%Y-%m-%d')}"
