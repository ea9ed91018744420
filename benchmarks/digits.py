"""How good the digits are after so many seconds of training, by the judge of `evaluate`."""

import csv
import json
import tempfile
from pathlib import Path

from benchmarks.measure import command, table

EVERY, STEPS = 300, 1200


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for seed in (0, 1, 2):
            run = Path(name) / str(seed)
            words = [f"checkpoint_every={EVERY}", f"log_every={EVERY}", "keep_checkpoints=99", "sample_every=0"]
            command("train", f"run_dir={run}", f"seed={seed}", "data.judge_images=0", *words)
            with open(run / "metrics.csv", newline="") as file:
                seconds = {int(row["step"]): float(row["seconds"]) for row in csv.DictReader(file)}
            row = [f"seed {seed}"]
            for step in range(EVERY, STEPS + 1, EVERY):
                out = run / f"judged{step}"
                words = ["metrics=[class_accuracy]", "num_images=500", f"checkpoint={step}", f"out={out}"]
                command("evaluate", f"run={run}", *words)
                found = json.loads((out / "result.json").read_text())["class_accuracy"]
                row.append(f"{found:.1%} ({seconds[step]:.0f} s)")
            rows.append(row)
    table(["class accuracy (seconds of training)", *range(EVERY, STEPS + 1, EVERY)], rows)
