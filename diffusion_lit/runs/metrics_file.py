"""metrics.csv: one row per logged step, the header fixed at the start, numbers in full precision."""

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

from diffusion_lit.system.files import write_atomically


class MetricsFile:
    """Appends rows; `step` is the number of optimizer steps done.

    Opened again for a resumed run, rows past `step` are dropped: that part of the run is about to be lived again.
    """

    def __init__(self, path: Path, columns: Sequence[str], step: int = 0):
        self.path, self.columns = path, ["step", *columns]
        kept = [row for row in read_metrics(path) if int(row["step"]) <= step] if path.exists() else []
        with write_atomically(path) as beside, open(beside, "w", newline="") as file:
            writer = csv.DictWriter(file, self.columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(kept)
        self.file = os.open(path, os.O_WRONLY | os.O_APPEND)
        self.waiting = b""  # rows, or the rest of one, that the disk had no room for

    def add(self, step: int, values: dict[str, float]) -> bool:
        """Whether the row is on the disk; if not, it is tried again with the next one."""
        row = io.StringIO(newline="")
        numbers = {name: repr(float(value)) for name, value in values.items()}
        csv.DictWriter(row, self.columns).writerow({"step": step} | numbers)
        self.waiting += row.getvalue().encode()
        return self._write()

    def close(self) -> None:
        self._write()
        os.close(self.file)

    def _write(self) -> bool:
        try:
            while self.waiting:
                self.waiting = self.waiting[os.write(self.file, self.waiting) :]
        except OSError:
            return False
        return True


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Rows as text; a value that was not measured at a step is empty. A row cut off by a crash is left out."""
    with open(path, newline="") as file:
        return [row for row in csv.DictReader(file) if None not in row.values()]
