"""Class accuracy of generated digits over seconds of training, by the classifier of `evaluate`."""

import csv
import json
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import print_table, run_command

SEEDS, STEPS = (0, 1, 2), (300, 600, 900, 1200)


def measure_rows(home: Path) -> Iterator[list[str]]:
    for seed in SEEDS:
        run = home / str(seed)
        overrides = [f"checkpoint_every={STEPS[0]}", f"log_every={STEPS[0]}", f"max_steps={STEPS[-1]}"]
        overrides += ["keep_checkpoints=99", "sample_every=0", "data.classifier_images=0"]
        run_command("train", f"run_dir={run}", f"seed={seed}", *overrides)
        with open(run / "metrics.csv", newline="", encoding="utf-8") as file:
            seconds = {int(row["step"]): float(row["seconds"]) for row in csv.DictReader(file)}
        row = [f"seed {seed}"]
        for step in STEPS:
            out = run / f"evaluated-{step}"
            overrides = ["metrics=[class_accuracy]", "num_images=500", f"checkpoint={step}", f"out={out}"]
            run_command("evaluate", f"run={run}", *overrides)
            accuracy = json.loads((out / "result.json").read_bytes())["class_accuracy"]
            row.append(f"{accuracy:.1%} ({seconds[step]:.0f} s)")
        yield row


def main(arguments: Namespace) -> None:
    with tempfile.TemporaryDirectory() as home:
        print_table(["step", *STEPS], measure_rows(Path(home)))
