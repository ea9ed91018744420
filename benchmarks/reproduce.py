"""Rerun published numbers by their ids: `python -m benchmarks reproduce --help`.

A row of a table whose last cell is an id holds published numbers. Ids of model cards are written by
`python -m docs.generate` and are measured on the shipped folder; ids of BENCHMARKS.md have a command in published.yaml.
"""

import argparse
import json
import math
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from benchmarks.measure import describe_machine, print_table, run_command
from diffusion_lit.config.metric_columns import COLUMNS
from diffusion_lit.data.sources.digits import Digits

ROOT = Path(__file__).parents[1]
CARDS = sorted((ROOT / "models").glob("*/README.md"))
PAGES = [ROOT / "BENCHMARKS.md", *CARDS]
PUBLISHED = yaml.safe_load(Path(__file__).with_name("published.yaml").read_text(encoding="utf-8"))
TOLERANCE = 0.03  # of a number without interval; of a share that is 3 %
CARD_HEADER = ["metric", "value", "interval"]
KEYS = {"NFE": "nfe", "FD": "fd", "KID": "kid", "recall": "recall", "class accuracy": "class_accuracy"}
KEYS |= {column.label: key for key, column in COLUMNS.items()}  # what tables call a number -> key of result.json


@dataclass(frozen=True)
class Published:
    """A number as its page shows it, and its interval."""

    text: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """The numbers of a table row, and how they are measured.

    Args:
        numbers: by their key of result.json, or by the column of a printed table.
        seconds: of the measurement on one core, without the training of its runs; None if not measured.
        overrides: of `evaluate`; {name} is the folder of a run or the file of training images.
        fingerprint: of the training images; None if the run has them.
        table: that `python -m benchmarks` prints, instead of an evaluation.
        first_cell: of the row in that table.
    """

    numbers: dict[str, Published]
    seconds: int | None
    overrides: str = ""
    fingerprint: str | None = None
    table: str | None = None
    first_cell: str = ""


# ---------------------------------------------------------------------------------------------- the pages


def read_rows() -> dict[str, Row]:
    """Return every row with an id, by its id."""
    rows = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for header, cells in split_tables(text):
            if header[-1] != "id" or not cells[-1]:
                continue
            name, is_card = cells[-1].strip("`"), header[:-1] == CARD_HEADER
            if is_card:
                numbers = {KEYS[cells[0]]: parse_number(f"{cells[1]} ({cells[2]})")}
                rows[name] = Row(numbers, *describe_evaluation(page.parent, text))
                continue
            entry, pairs = PUBLISHED["rows"][name], list(zip(header, cells, strict=True))
            if table := entry.get("table"):
                numbers = {label: parse_number(cell) for label, cell in pairs[1:-1] if label != "images"}
                rows[name] = Row(numbers, entry["seconds"], table=table, first_cell=cells[0])
            else:
                numbers = {KEYS[label]: parse_number(cell) for label, cell in pairs if label in KEYS}
                rows[name] = Row(numbers, entry["seconds"], entry["evaluate"])
    return rows


def split_tables(text: str) -> Iterator[tuple[list[str], list[str]]]:
    """Return for every row of the Markdown tables of a text the header of its table, and its cells."""
    header: list[str] = []
    for line in text.splitlines():
        if not line.startswith("|"):
            header = []
        elif not header:
            header = split_cells(line)
        elif not set(line) <= set("|- "):
            yield header, split_cells(line)


def split_cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def parse_number(cell: str) -> Published:
    """Return a number, such as "98.8 %" or with its interval "0.24 (0.18 to 0.30)"."""
    found = [number.replace(",", "") for number in re.findall(r"-?\d[\d,]*\.?\d*(?:e[-+]\d+)?", cell)]
    value, *interval = [float(number) * (0.01 if "%" in cell else 1) for number in found]
    return Published(cell.removesuffix(" ()"), value, *(interval or (value - TOLERANCE, value + TOLERANCE)))


def describe_evaluation(model: Path, card: str) -> tuple[int | None, str, str]:
    """Return seconds and overrides of the evaluation in a model card, and the fingerprint of the training images."""
    images = re.search(r"([\d,]+) images generated with seed (\d+)", card)
    reference = re.search(r"images of the (\w+) split\. Features: `(\w+)`", card)
    if not images or not reference:
        raise ValueError(f"{model}/README.md: does not say, as `export` writes it, what was compared with what")
    overrides = [f"run={model}", f"num_images={images[1].replace(',', '')}", f"seed={images[2]}"]
    overrides += [f"features={reference[2]}", f"reference_split={reference[1]}", f"reference_data={{{model.name}}}"]
    config = yaml.safe_load((model / "config.yaml").read_text(encoding="utf-8"))
    return PUBLISHED["models"].get(model.name), shlex.join(overrides), config["exported"]["data"]


def add_ids(card: str, model: str) -> str:
    """Return a model card with ids in a last column of its evaluation."""
    lines, is_evaluation = [], False
    for line in card.splitlines():
        cells = split_cells(line)
        is_evaluation = line.startswith("|") and (is_evaluation or cells == CARD_HEADER)
        last = {"metric": " id ", "---": "---"}.get(cells[0]) or f" `{model}.{KEYS.get(cells[0], cells[0])}` "
        lines.append(f"{line}{last}|" if is_evaluation else line)
    return "\n".join(lines) + "\n"


# ------------------------------------------------------------------------------------------- the commands


def find_names(overrides: str) -> list[str]:
    """Return the names of all runs and training images behind an evaluation, each before what needs it."""
    names: list[str] = []
    for name in re.findall(r"{(\w+)}", overrides):
        names += [*find_names(PUBLISHED["runs"].get(name, {"train": ""})["train"]), name]
    return list(dict.fromkeys(names))


def sum_seconds(row: Row) -> int | None:
    """Return how long a row takes on one core with the training of its runs."""
    runs = [PUBLISHED["runs"][name]["seconds"] for name in find_names(row.overrides) if name in PUBLISHED["runs"]]
    return None if row.seconds is None else row.seconds + sum(runs)


def run(command: str, overrides: str, paths: dict[str, Path], **folder: Path) -> None:
    """Run a command of diffusion_lit after printing it."""
    resolved = [override.format_map(paths) for override in shlex.split(overrides)]
    resolved += [f"{key}={path}" for key, path in folder.items()]
    print(f"running    python -m diffusion_lit.{command} {shlex.join(resolved)}", flush=True)
    run_command(command, *resolved)


def save_digits(path: Path) -> Path:
    """Save the handwritten digits as arrays that `reference_data` reads."""
    splits = Digits().splits()
    images = {f"x_{name}": split.images for name, split in splits.items()}
    np.savez(path, **images, **{f"y_{name}": split.labels for name, split in splits.items()})
    return path


def evaluate(row: Row, paths: dict[str, Path], home: Path) -> dict:
    """Return result.json of an evaluation, after the training of the runs that it needs and `paths` lacks."""
    for name in find_names(row.overrides):
        if name not in paths:
            run("train", PUBLISHED["runs"][name]["train"], paths, run_dir=home / name)
            paths[name] = home / name
    out = home / f"evaluated-{len(list(home.glob('evaluated-*')))}"
    run("evaluate", row.overrides, paths, out=out)
    result = json.loads((out / "result.json").read_bytes())
    measured = result["settings"]["reference"]["data"]
    if row.fingerprint not in (None, measured):
        sys.exit(f"the card is about images of fingerprint {row.fingerprint}, these have {measured}")
    return result


def print_benchmark(table: str) -> dict[str, dict[str, float]]:
    """Return the numbers of the tables that a benchmark prints, by first cell and column."""
    print(f"running    python -m benchmarks {table}", flush=True)
    command = [sys.executable, "-m", "benchmarks", table]
    printed = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    return {
        cells[0]: {label: parse_number(cell).value for label, cell in zip(header[1:], cells[1:], strict=True)}
        for header, cells in split_tables(printed)
    }


def measure_rows(rows: dict[str, Row], paths: dict[str, Path], home: Path) -> Iterator[tuple[str, dict]]:
    """Measure what the rows need, each command once.

    Args:
        rows: by id.
        paths: of training images, by name.
        home: a folder for the runs.

    Yields:
        Id and measured numbers.
    """
    results: dict[str, dict] = {}
    for name, row in rows.items():
        command = row.table or row.overrides
        if command not in results:
            results[command] = print_benchmark(row.table) if row.table else evaluate(row, paths, home)
        yield name, results[command].get(row.first_cell, {}) if row.table else results[command]


def reproduce(rows: dict[str, Row], data: dict[str, Path], home: Path) -> bool:
    """Measure rows again, print each number with its verdict, and return whether all pass, and at least one."""
    verdicts, known = [], {"digits", *data, *PUBLISHED["runs"]}
    for name in list(rows):
        if missing := [needed for needed in find_names(rows[name].overrides) if needed not in known]:
            print(f"skipped    {name}: add --data {missing[0]}=<its training images>")
            del rows[name]
    paths = {"digits": save_digits(home / "digits.npz"), **data}
    for name, result in measure_rows(rows, paths, home):
        for key, number in rows[name].numbers.items():
            value = result.get(key, math.nan)  # nan: withheld
            verdicts.append(number.low <= value <= number.high)
            verdict = "pass" if verdicts[-1] else "FAIL"
            print(f"{verdict:<10} {name} {key} {value:.4g}, published {number.text}", flush=True)
    print(f"{sum(verdicts)} of {len(verdicts)} numbers pass")
    return bool(verdicts) and all(verdicts)


def parse_arguments(arguments: list[str], rows: dict[str, Row]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks reproduce",
        description="Measure published numbers again. Without an id: list all ids and their cost.\n"
        f"A number passes in its published interval, or without one within {TOLERANCE} of its value. Runs are trained\n"
        "again: the numbers are equal on an equal machine, others round differently and train slightly other weights.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("ids", nargs="*", metavar="id", help="id beside a number, or the first part of several")
    parser.add_argument("--data", action="append", default=[], metavar="NAME=PATH", help="training images of a model")
    parser.add_argument("--out", type=Path, help="new folder that keeps runs and evaluations; else they are deleted")
    parsed = parser.parse_args(arguments)
    if parsed.out and parsed.out.exists():
        parser.error(f"--out {parsed.out}: exists. Choose a new folder")
    for name in parsed.ids:
        if not any(f"{row}.".startswith(f"{name}.") for row in rows):
            parser.error(f"unknown id {name}. Without an id all are listed")
    if wrong := [pair for pair in parsed.data if "=" not in pair]:
        parser.error(f"--data {wrong[0]}: write <name>=<path>, such as --data mnist=mnist_12k.npz")
    return parsed


def main(arguments: list[str]) -> None:
    rows = read_rows()
    parsed = parse_arguments(arguments, rows)
    if not parsed.ids:
        costs = {name: sum_seconds(row) for name, row in rows.items()}
        cells = [[f"`{name}`", costs[name] or "not measured", ", ".join(row.numbers)] for name, row in rows.items()]
        print_table(["id", "seconds on one core", "numbers"], cells)
        return
    print(describe_machine(), flush=True)
    chosen = {name: row for name, row in rows.items() if any(f"{name}.".startswith(f"{one}.") for one in parsed.ids)}
    data = {name: Path(path).expanduser() for name, _, path in (pair.partition("=") for pair in parsed.data)}
    with tempfile.TemporaryDirectory() as temporary:
        home = (parsed.out or Path(temporary)).absolute()
        home.mkdir(parents=True, exist_ok=True)
        has_passed = reproduce(chosen, data, home)
    sys.exit(0 if has_passed else 1)
