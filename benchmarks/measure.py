"""What all tables share: medians with intervals, configurations from words, the machine."""

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

from diffusion_lit.config.compose import compose_configs, resolve_data
from diffusion_lit.config.expand import expand_overrides


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


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Rows are printed as they come."""
    for row in chain((head, ["---"] * len(head)), rows):
        print("| " + " | ".join(map(str, row)) + " |", flush=True)


def config_of(*words: str) -> tuple[dict, object]:
    """The resolved configuration of a `train` command line, and its source of pictures."""
    return resolve_data(compose_configs("train", expand_overrides(list(words), None))[0])


def command(verb: str, *words: str) -> tuple[str, float]:
    """What a command of ours prints, and the largest resident memory of its process, MiB.

    Looked at from outside, again and again: processes of several ranks end without a last word, and what `getrusage`
    says of a child begins with the memory of its parent.
    """
    peak, run = 0.0, [sys.executable, "-m", f"diffusion_lit.{verb}", *words]
    with tempfile.TemporaryFile("w+") as file:
        process = subprocess.Popen(run, stdout=file, stderr=subprocess.STDOUT)
        while process.poll() is None:
            with suppress(OSError, StopIteration):  # it has ended meanwhile
                lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
                peak = next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
            time.sleep(0.05)
        file.seek(0)
        printed = file.read()
    if process.returncode:
        sys.exit(f"{verb} {' '.join(words)} failed:\n{printed[-3000:]}")
    return printed, peak


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
