"""The summary of a sweep: results.csv, a table of means over seeds, a figure.

`python -m diffusion_lit.cli.summary <folder> [metric]` makes them again, also of a
sweep that was killed or runs.
"""

import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from diffusion_lit.figures.sweep_results import draw_sweep
from diffusion_lit.runs import run_dir, sweeps
from diffusion_lit.system.errors import Exit, UserError, report_errors

FAILURES_TOLD = 8


def summarize_sweep(sweep: Path, metric: str | None = None, others: Sequence[str] = ()) -> None:
    """Write results.csv, print the table and draw results.png; nothing for a folder
    without jobs.

    Args:
        others: what the table has besides the metric.

    Raises:
        UserError: exit 5 if the folder cannot be written to.
    """
    try:
        jobs = sweeps.write_sweep_results(sweep)
        if not jobs:
            return
        metric = metric or sweeps.read_sweep_metric(jobs)
        keys = [key for key in sweeps.find_swept_keys(jobs) if key != "seed"]
        groups = sweeps.group_jobs(jobs, keys, metric)
        better = "higher" if metric in sweeps.HIGHER_IS_BETTER else "lower"
        told = f"mean of {metric} over n seeds and its 95 % interval; {better} is better"
        print_lines(
            format_summary(groups, keys, [metric, *others]), told, *format_failures(jobs, sweeps.find_swept_keys(jobs))
        )
        if any(group.numbers for group in groups):
            draw_sweep(groups, keys, metric, sweep)
            print_lines(f"picture    {run_dir.display_path(sweep / 'results.png')}")
        elif any(job.status == "finished" for job in jobs):
            command = f"python -m diffusion_lit.cli.summary {shlex.quote(str(run_dir.display_path(sweep)))} <metric>"
            print_lines(
                f"no result has a number {metric!r}; there are {', '.join(sweeps.list_metrics(jobs))}: {command}"
            )
        print_lines(f"rows       {run_dir.display_path(sweep / 'results.csv')}")
    except OSError as error:
        raise UserError(Exit.OUTPUT, f"{sweep} cannot be written to: {error}") from None


def format_failures(jobs: list[sweeps.Job], keys: list[str]) -> list[str]:
    """A line for each job that did not finish, and why."""
    bad = [job for job in jobs if job.status != "finished"]
    lines = []
    for job in bad[:FAILURES_TOLD]:
        what = " ".join(f"{key}={job.overrides[key]}" for key in keys if key in job.overrides)
        why = job.result.get("error") or (f"exit code {job.result['exit_code']}" if "exit_code" in job.result else "")
        name = f"{job.folder.name} ({what})" if what else job.folder.name
        lines.append(f"{job.status:<10} {name}{': ' * bool(why)}{why}")
    return lines + ([f"and {len(bad) - FAILURES_TOLD} more did not finish"] if len(bad) > FAILURES_TOLD else [])


def format_summary(groups: list[sweeps.JobGroup], keys: list[str], names: Sequence[str]):
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
        means = [(group.mean, group.half_width), *[sweeps.mean_over_jobs(group.jobs, metric) for metric in names[1:]]]
        cells = ["" if value is None else f"{value:.5g}" for pair in means for value in pair]
        best = "<- best" if k == 0 and group.numbers and len(groups) > 1 else ""
        numbers.add_row(
            *map(sweeps.shorten_number, group.values), str(len(group.numbers)), *cells, str(bad or ""), best
        )
    return numbers


def print_lines(*lines) -> None:
    """On a terminal as wide as it is; in a file or a pipe nothing is cut."""
    import rich
    from rich.console import Console

    console = rich.get_console() if rich.get_console().is_terminal else Console(width=1000)
    with suppress(BrokenPipeError, SystemExit):  # nobody reads on
        for line in lines:
            console.print(line, markup=False, highlight=False, soft_wrap=isinstance(line, str))


def main() -> None:
    with report_errors():
        if len(sys.argv) not in (2, 3):
            raise UserError(Exit.CONFIG, "usage: python -m diffusion_lit.cli.summary <folder> [metric]")
        if not sweeps.list_jobs(Path(sys.argv[1])):
            raise UserError(Exit.CHECKPOINT, f"{sys.argv[1]} is no folder of a sweep: there are no jobs in it")
        summarize_sweep(*[Path(sys.argv[1]), *sys.argv[2:]])


if __name__ == "__main__":
    main()
