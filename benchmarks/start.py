"""Seconds from the command line to `--help`, and to the first training step."""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import format_interval, print_table

ROUNDS = 7


def measure_cpu_seconds(*arguments: str) -> float:
    """Return the CPU time of a Python process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure_first_step(folder: Path) -> float:
    """Return the seconds until metrics.csv has its first row."""
    command = [sys.executable, "-m", "diffusion_lit.train", "log_every=1", f"run_dir={folder}"]
    metrics, start = folder / "metrics.csv", time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (metrics.exists() and metrics.read_text(encoding="utf-8").count("\n") > 1):
        if process.poll():
            sys.exit("train failed")
        time.sleep(0.01)
    seconds = time.perf_counter() - start
    process.kill()
    process.wait()
    return seconds


def measure_rows() -> Iterator[list[str]]:
    bare = statistics.median(measure_cpu_seconds("-c", "pass") for _ in range(ROUNDS))
    for command in ("train", "sample", "evaluate"):
        seconds = [measure_cpu_seconds("-m", f"diffusion_lit.{command}", "--help") - bare for _ in range(ROUNDS)]
        yield [f"`{command} --help`, CPU time beyond Python's own start", format_interval(seconds, " s", 2)]
    with tempfile.TemporaryDirectory() as folder:
        seconds = [measure_first_step(Path(folder) / str(k)) for k in range(ROUNDS)]
    yield ["`train` on the digits to its first step", format_interval(seconds, " s", 2)]


def main(arguments: Namespace) -> None:
    print_table(["", f"{os.cpu_count()} cores"], measure_rows())
