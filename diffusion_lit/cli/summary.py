"""The summary of a sweep: results.csv, a table of means over seeds, a figure.

`python -m diffusion_lit.cli.summary <folder> [metric]` makes them again, also for a
sweep that still runs or was killed.
"""

import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from diffusion_lit.runs import run_dir, sweeps
from diffusion_lit.system.console import create_table, escape_lines
from diffusion_lit.system.errors import CheckpointError, ConfigError, OutputError, report_errors

MAX_FAILURES = 8  # listed one by one


def summarize_sweep(sweep: Path, metric: str | None = None, others: Sequence[str] = ()) -> None:
    """Write results.csv, print the table and draw results.png.

    Do nothing for a folder without jobs.

    Args:
        sweep: folder of the sweep.
        metric: value of result.json to compare; None: that of the sweep.
        others: further columns of the table.

    Raises:
        UserError: exit 5 if the folder cannot be written to.
    """
    try:
        jobs = sweeps.write_sweep_results(sweep)
        if not jobs:
            return
        metric, swept = metric or sweeps.read_sweep_metric(jobs), sweeps.find_swept_keys(jobs)
        keys = [key for key in swept if key != "seed"]
        groups = sweeps.group_jobs(jobs, keys, metric)
        better = "higher" if metric in sweeps.HIGHER_IS_BETTER else "lower"
        print_lines(format_summary(groups, keys, [metric, *others]))
        print_lines(f"mean of {metric} over n seeds and its 95 % interval; {better} is better")
        if reason := sweeps.explain_misleading_metric(metric, keys):
            print_lines(reason)
        print_lines(*format_failures(jobs, swept))
        if any(group.numbers for group in groups):
            from diffusion_lit.figures.sweep_results import draw_sweep  # imports torch

            draw_sweep(groups, keys, metric, sweep)
            print_lines(f"figure     {run_dir.display_path(sweep / 'results.png')}")
        elif any(job.status == "finished" for job in jobs):
            command = f"python -m diffusion_lit.cli.summary {shlex.quote(str(run_dir.display_path(sweep)))} <metric>"
            names = ", ".join(sweeps.list_metrics(jobs))
            print_lines(f"no result has a number {metric!r}. Choose one of {names}: {command}")
        print_lines(f"table      {run_dir.display_path(sweep / 'results.csv')}")
    except OSError as error:
        raise OutputError(f"{sweep} cannot be written to: {error}") from None


def format_failures(jobs: list[sweeps.Job], keys: list[str]) -> list[str]:
    """Return a line with the reason for each job that did not finish, at most `MAX_FAILURES`."""
    unfinished = [job for job in jobs if job.status != "finished"]
    lines = []
    for job in unfinished[:MAX_FAILURES]:
        overrides = " ".join(f"{key}={job.overrides[key]}" for key in keys if key in job.overrides)
        why = job.result.get("error") or (f"exit code {job.result['exit_code']}" if "exit_code" in job.result else "")
        name = f"{job.folder.name} ({overrides})" if overrides else job.folder.name
        lines.append(f"{job.status:<10} {name}{': ' * bool(why)}{why}")
    more = len(unfinished) - MAX_FAILURES
    return lines + ([f"and {more} more did not finish"] if more > 0 else [])


def format_summary(groups: list[sweeps.JobGroup], keys: list[str], names: Sequence[str]):
    """Return a rich table with a row for each combination of swept values.

    Args:
        groups: jobs that differ in their seed only, by the first metric.
        keys: swept keys, without the seed.
        names: metrics.
    """
    numbers = create_table(keys, ["n", *[cell for metric in names for cell in (metric, "± 95 %")], "not finished"])
    for k, group in enumerate(groups):
        unfinished = sum(job.status != "finished" for job in group.jobs)
        means = [sweeps.compute_mean_of_jobs(group.jobs, metric) for metric in names]
        cells = ["" if value is None else f"{value:.5g}" for pair in means for value in pair]
        best = "" if k or not group.numbers or len(groups) == 1 else describe_lead(group, groups[1])
        values = map(sweeps.shorten_number, group.values)
        numbers.add_row(*values, str(len(group.numbers)), *cells, str(unfinished or ""), best)
    return numbers


def describe_lead(first: sweeps.JobGroup, second: sweeps.JobGroup) -> str:
    """Return the mark of the best mean: whether it is a tie, or its interval holds the second one."""
    if not second.numbers:
        return "<- best"
    if f"{first.mean:.5g}" == f"{second.mean:.5g}":
        return "<- tie"
    half_widths = [group.half_width or 0.0 for group in (first, second)]
    return "<- best" if abs(first.mean - second.mean) > max(half_widths) else "<- not clearly best"


def print_lines(*lines) -> None:
    """Print lines and rich tables, without cutting them where standard output is no terminal."""
    from rich.console import Console

    console = Console(markup=False, emoji=False, highlight=False)  # cells of tables are text of users as well
    if not console.is_terminal:
        console.width = 1000
    with suppress(BrokenPipeError, SystemExit):  # `| head` closed the pipe
        for line in lines:
            is_text = isinstance(line, str)
            console.print(escape_lines(line) if is_text else line, soft_wrap=is_text)


def main() -> None:
    """Summarize the sweep on the command line."""
    with report_errors():
        if len(sys.argv) not in (2, 3):
            raise ConfigError("usage: python -m diffusion_lit.cli.summary <folder> [metric]")
        if not sweeps.list_jobs(Path(sys.argv[1])):
            raise CheckpointError(f"{sys.argv[1]}: not the folder of a sweep, it has no jobs")
        summarize_sweep(Path(sys.argv[1]), *sys.argv[2:])


if __name__ == "__main__":
    main()
