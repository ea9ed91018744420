"""metrics.csv: one row per logged step, the header fixed at the start, numbers in full precision."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path


class MetricsFile:
    """Appends rows; `step` is the number of optimizer steps done.

    Opened again for a resumed run, rows past `step` are dropped: that part of the run is about to be lived again.
    """

    def __init__(self, path: Path, columns: Sequence[str], step: int = 0):
        self.path, self.columns = path, ["step", *columns]
        kept = [row for row in read_metrics(path) if int(row["step"]) <= step] if path.exists() else []
        beside = path.with_name(f".{path.name}.tmp")
        with open(beside, "w", newline="") as file:
            writer = csv.DictWriter(file, self.columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(kept)
        os.replace(beside, path)
        self.file = open(path, "a", newline="")  # noqa: SIM115 open for the whole run
        self.writer = csv.DictWriter(self.file, self.columns)

    def add(self, step: int, values: dict[str, float]) -> None:
        self.writer.writerow({"step": step} | {name: repr(float(value)) for name, value in values.items()})
        self.file.flush()

    def close(self) -> None:
        self.file.close()


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Rows as text; a value that was not measured at a step is empty. A row cut off by a crash is left out."""
    with open(path, newline="") as file:
        return [row for row in csv.DictReader(file) if None not in row.values()]
