"""The summary of a sweep: results.csv, a table of means over seeds, a figure.

`python -m diffusion_lit.cli.summary <folder> [metric]` makes them again, also of a sweep that was killed or runs.
"""

import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from diffusion_lit.figures.sweep_results import draw
from diffusion_lit.runs import run_dir
from diffusion_lit.runs.sweeps import (
    HIGHER_IS_BETTER,
    Group,
    Job,
    groups_of,
    jobs_of,
    mean_of,
    metric_of,
    metrics,
    short,
    swept,
    write_results,
)  # fmt: skip
from diffusion_lit.system.errors import Exit, UserError, reported

FAILURES_TOLD = 8


def summarise(sweep: Path, metric: str | None = None, others: Sequence[str] = ()) -> None:
    """Write results.csv, print the table and draw results.png; nothing for a folder without jobs.

    Args:
        others: what the table has besides the metric.

    Raises:
        UserError: exit 5 if the folder cannot be written to.
    """
    try:
        jobs = write_results(sweep)
        if not jobs:
            return
        metric = metric or metric_of(jobs)
        keys = [key for key in swept(jobs) if key != "seed"]
        groups = groups_of(jobs, keys, metric)
        better = "higher" if metric in HIGHER_IS_BETTER else "lower"
        told = f"mean of {metric} over n seeds and its 95 % interval; {better} is better"
        show(table(groups, keys, [metric, *others]), told, *failures(jobs, swept(jobs)))
        if any(group.numbers for group in groups):
            draw(groups, keys, metric, sweep)
            show(f"picture    {run_dir.shown(sweep / 'results.png')}")
        elif any(job.status == "finished" for job in jobs):
            command = f"python -m diffusion_lit.cli.summary {shlex.quote(str(run_dir.shown(sweep)))} <metric>"
            show(f"no result has a number {metric!r}; there are {', '.join(metrics(jobs))}: {command}")
        show(f"rows       {run_dir.shown(sweep / 'results.csv')}")
    except OSError as error:
        raise UserError(Exit.OUTPUT, f"{sweep} cannot be written to: {error}") from None


def failures(jobs: list[Job], keys: list[str]) -> list[str]:
    """A line for each job that did not finish, and why."""
    bad = [job for job in jobs if job.status != "finished"]
    lines = []
    for job in bad[:FAILURES_TOLD]:
        what = " ".join(f"{key}={job.words[key]}" for key in keys if key in job.words)
        why = job.result.get("error") or (f"exit code {job.result['exit_code']}" if "exit_code" in job.result else "")
        name = f"{job.folder.name} ({what})" if what else job.folder.name
        lines.append(f"{job.status:<10} {name}{': ' * bool(why)}{why}")
    return lines + ([f"and {len(bad) - FAILURES_TOLD} more did not finish"] if len(bad) > FAILURES_TOLD else [])


def table(groups: list[Group], keys: list[str], names: Sequence[str]):
    """A rich table, one line for each combination of swept values over seeds; `groups` are of the first metric."""
    from rich.table import Table

    numbers = Table(box=None, pad_edge=False)
    for key in keys:
        numbers.add_column(key)
    for name in ("n", *[cell for metric in names for cell in (metric, "± 95 %")], "not finished"):
        numbers.add_column(name, justify="right")
    numbers.add_column("")
    for k, group in enumerate(groups):
        bad = sum(job.status != "finished" for job in group.jobs)
        means = [(group.mean, group.half), *[mean_of(group.jobs, metric) for metric in names[1:]]]
        cells = ["" if value is None else f"{value:.5g}" for pair in means for value in pair]
        best = "<- best" if k == 0 and group.numbers and len(groups) > 1 else ""
        numbers.add_row(*map(short, group.values), str(len(group.numbers)), *cells, str(bad or ""), best)
    return numbers


def show(*lines) -> None:
    """On a terminal as wide as it is; in a file or a pipe nothing is cut."""
    import rich
    from rich.console import Console

    console = rich.get_console() if rich.get_console().is_terminal else Console(width=1000)
    with suppress(BrokenPipeError, SystemExit):  # nobody reads on
        for line in lines:
            console.print(line, markup=False, highlight=False, soft_wrap=isinstance(line, str))


def main() -> None:
    with reported():
        if len(sys.argv) not in (2, 3):
            raise UserError(Exit.CONFIG, "usage: python -m diffusion_lit.cli.summary <folder> [metric]")
        if not jobs_of(Path(sys.argv[1])):
            raise UserError(Exit.CHECKPOINT, f"{sys.argv[1]} is no folder of a sweep: there are no jobs in it")
        summarise(*[Path(sys.argv[1]), *sys.argv[2:]])


if __name__ == "__main__":
    main()
