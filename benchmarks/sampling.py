"""Sampling the digits: the default sampler against DDIM and DDPM with every step; speed and memory, with guidance."""

import json
import re
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import print_table, run_command

METRICS = ("metrics=[kid,fd,class_accuracy]", "reference_split=val")
SAMPLERS = {
    "the default": (),
    "`sampler=ddim sampler.steps=25`": ("sampler=ddim", "sampler.steps=25"),
    "`sampler=ddpm sampler.steps=1000`": ("sampler=ddpm", "sampler.steps=1000"),
}
IMAGES = 1_000


def measure_sampling(*overrides: str) -> tuple[float, float]:
    """Return images per second and peak resident memory in MiB of a `sample` command."""
    output, memory = run_command("sample", *overrides)
    return float(re.search(r"([\d.,]+) img/s", output)[1].replace(",", "")), memory


def evaluate_samplers(home: Path) -> Iterator[list[str]]:
    for k, (name, overrides) in enumerate(SAMPLERS.items()):
        out = home / f"evaluated-{k}"
        run_command("evaluate", f"run={home / 'run'}", *METRICS, *overrides, f"num_images={IMAGES}", f"out={out}")
        result = json.loads((out / "result.json").read_bytes())
        fd = f"{result['fd']:.2f} ({result['fd_low']:.2f} to {result['fd_high']:.2f})"
        rate = result["num_images"] / result["seconds"]
        yield [name, f"{result['nfe']:g}", fd, f"{result['class_accuracy']:.1%}", f"{rate:,.1f}"]


def measure_cost(home: Path) -> Iterator[list[str]]:
    for k, (count, *more) in enumerate(((IMAGES,), (10 * IMAGES,), (IMAGES, "guidance_scale=2"))):
        out = f"out={home / f'sampled-{k}'}"
        rate, memory = measure_sampling(f"run={home / 'run'}", f"num_images={count}", out, *more)
        yield [f"{count:,} images {' '.join(more)}", f"{rate:,.0f}", f"{memory:,.0f} MiB"]


def main(arguments: Namespace) -> None:
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        run_command("train", f"run_dir={home / 'run'}")
        print_table(["", "NFE", "FD to validation digits", "class accuracy", "img/s"], evaluate_samplers(home))
        print()
        print_table(["", "img/s", "peak memory"], measure_cost(home))
