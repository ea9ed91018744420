"""metrics.csv: one row for each logged step, with a fixed header and numbers in full precision."""

import csv
import io
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from diffusion_lit.system.files import write_atomically


class MetricsFile:
    """Writer of metrics.csv that survives a full disk.

    Args:
        columns: names of the values, without `step`.
        step: optimizer steps done. Rows of later steps are removed, since a resumed
            run does these steps again.
    """

    def __init__(self, path: Path, columns: Sequence[str], step: int = 0):
        self.path, self.columns = path, ["step", *columns]
        kept = [row for row in read_metrics(path) if int(row["step"]) <= step] if path.exists() else []
        with write_atomically(path) as beside, open(beside, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(kept)
        self.file = os.open(path, os.O_WRONLY | os.O_APPEND)
        self.pending = b""  # bytes of rows for which the disk had no room

    def add(self, step: int, values: dict[str, float]) -> bool:
        """Append a row and return whether it was written.

        If not, the next call retries.
        """
        row = io.StringIO(newline="")
        numbers = {name: repr(float(value)) for name, value in values.items()}
        csv.DictWriter(row, self.columns).writerow({"step": step} | numbers)
        self.pending += row.getvalue().encode()
        return self._write()

    def close(self) -> None:
        """Write what is pending and close the file."""
        self._write()
        os.close(self.file)

    def _write(self) -> bool:
        with suppress(OSError):
            while self.pending:
                self.pending = self.pending[os.write(self.file, self.pending) :]
        return not self.pending


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Return the rows as text, without a last row that a crash cut off.

    Values that were not measured at a step are empty.
    """
    with open(path, newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if None not in row.values()]
