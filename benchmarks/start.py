"""From the command to help, and to the first step."""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measure import shown, table

ROUNDS = 7


def cpu_seconds(*words: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def first_step(folder: Path) -> float:
    """Seconds until metrics.csv has its first row."""
    words = [sys.executable, "-m", "diffusion_lit.train", "log_every=1", f"run_dir={folder}"]
    start = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        if (folder / "metrics.csv").exists() and (folder / "metrics.csv").read_text().count("\n") > 1:
            break
        time.sleep(0.01)
    taken = time.perf_counter() - start
    process.kill()
    process.wait()
    return taken


def main() -> None:
    bare = statistics.median(cpu_seconds("-c", "pass") for _ in range(ROUNDS))
    rows = []
    for verb in ("train", "sample", "evaluate"):
        taken = [cpu_seconds("-m", f"diffusion_lit.{verb}", "--help") - bare for _ in range(ROUNDS)]
        rows.append([f"`{verb} --help`, CPU beyond Python's own start", shown(taken, " s", 2)])
    with tempfile.TemporaryDirectory() as folder:
        taken = [first_step(Path(folder) / str(k)) for k in range(ROUNDS)]
    rows.append(["`train` on the digits until its first step", shown(taken, " s", 2)])
    table(["", f"{os.cpu_count()} cores"], rows)
