"""What images of the digits cost: the run's own sampler beside DDPM through every step, guidance, and memory."""

import json
import re
import tempfile
from pathlib import Path

from benchmarks.measure import command, table

METRICS = ("metrics=[fd,class_accuracy]", "reference=val", "num_images=1000")


def sampled(*words: str) -> tuple[float, float]:
    """Images a second and the largest resident memory, MiB, of a `sample` command."""
    printed, memory = command("sample", *words)
    return float(re.search(r"([\d.,]+) img/s", printed)[1].replace(",", "")), memory


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        run = f"run={Path(name) / 'run'}"
        command("train", f"run_dir={Path(name) / 'run'}")
        rows = []
        for words in ([], ["sampler=ddim", "sampler.steps=25"], ["sampler=ddpm", "sampler.steps=1000"]):
            out = Path(name) / f"evaluated{len(rows)}"
            command("evaluate", run, *METRICS, *words, f"out={out}")
            found = json.loads((out / "result.json").read_text())
            told = " ".join(words).replace("sampler.", "") or "the default"
            interval = f"{found['fd']:.2f} ({found['fd_low']:.2f} to {found['fd_high']:.2f})"
            right, rate = f"{found['class_accuracy']:.1%}", f"{found['num_images'] / found['seconds']:,.1f}"
            rows.append([told, f"{found['nfe']:g}", interval, right, rate])
        table(["", "NFE", "FD to held-out digits", "class accuracy", "img/s"], rows)
        print()
        rows = []
        for count, more in ((1_000, []), (10_000, []), (1_000, ["guidance_scale=2"])):
            out = f"out={Path(name) / f'many{len(rows)}'}"
            rate, memory = sampled(run, f"num_images={count}", out, *more)
            rows.append([f"{count:,} images {' '.join(more)}", f"{rate:,.0f}", f"{memory:,.0f} MiB"])
        table(["", "img/s", "largest memory"], rows)
