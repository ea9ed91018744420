"""The folder of a sweep, read as it lies there: results.csv, a table of means over seeds, a picture.

`python -m diffusion_lit.runs.sweeps <folder> [metric]` writes and shows them again, of a sweep that was killed or still
runs. A job is a run folder: command.txt says what it was, result.json how it ended.
"""

import csv
import math
import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from diffusion_lit.errors import Exit, UserError, reported
from diffusion_lit.files import replacing
from diffusion_lit.platforms import lock
from diffusion_lit.runs import folder

HIGHER_IS_BETTER = {  # of result.json; else lower is
    "class_accuracy", "class_accuracy_real", "images_per_second", "precision", "recall", "density", "coverage",
}  # fmt: skip
NOT_SWEPT = {"resume", "run_dir", "accept", "run"}  # a job that was resumed is still the same job
FAILURES_TOLD = 8


@dataclass(frozen=True)
class Job:
    """One run of a sweep."""

    folder: Path
    words: dict[str, str]  # key to value, as on its command line; of an evaluation also those of its run
    result: dict[str, object]  # single values of result.json

    @property
    def status(self) -> str:
        return self.result.get("status", "unfinished")  # killed, or still running

    def number(self, metric: str) -> float | None:
        """The value to compare; None if the run did not finish or the value is no finite number."""
        value = self.result.get(metric)
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return float(value) if self.status == "finished" and is_number else None


@dataclass(frozen=True)
class Group:
    """The jobs of one combination of swept values, over seeds."""

    values: tuple[str, ...]
    first: int  # place of its first job among all
    jobs: list[Job]
    numbers: list[float]  # of the jobs that have one
    mean: float | None
    half: float | None  # of the 95 % interval of the mean; None with less than two numbers


# ------------------------------------------------------------------------------------------------------ reading


def jobs_of(sweep: Path) -> list[Job]:
    """The jobs that were started, in their order."""
    folders = [path for path in sweep.glob("*/") if (path / "train.log").exists() or (path / "command.txt").exists()]
    return [_job(path) for path in sorted(folders, key=lambda path: (path.name.zfill(9), path.name))]


def _job(path: Path) -> Job:
    words = words_of(path)
    result = folder.read_result(path)
    words = result.get("trained", {}) | words
    numbers = {key: value for key, value in result.items() if not isinstance(value, list | dict)}
    return Job(path, {key: value for key, value in words.items() if key not in NOT_SWEPT}, numbers)


def words_of(path: Path) -> dict[str, str]:
    """Key to value of the command line that a folder holds; nothing of one that was stopped before it wrote one."""
    with suppress(UserError):
        return dict(word.partition("=")[::2] for word in folder.read_overrides(path))
    return {}


def swept(jobs: list[Job]) -> list[str]:
    """The keys that have more than one value."""
    keys = dict.fromkeys(key for job in jobs for key in job.words)
    return [key for key in keys if len({job.words.get(key) for job in jobs if job.words}) > 1]


def metric_of(jobs: list[Job]) -> str:
    """What the sweep compares, by the configuration of its first job that has one."""
    for job in jobs:
        with suppress(UserError):
            return folder.read_config(job.folder)["metric"]
    return "val_loss"


def groups_of(jobs: list[Job], keys: list[str], metric: str) -> list[Group]:
    """The jobs by their values of `keys`, best mean first, those without a mean last."""
    members: dict[tuple[str, ...], list[Job]] = {}
    for job in jobs:
        members.setdefault(tuple(job.words.get(key, "") for key in keys), []).append(job)
    groups = []
    for values, same in members.items():
        numbers = [number for job in same if (number := job.number(metric)) is not None]
        groups.append(Group(values, jobs.index(same[0]), same, numbers, *mean_and_half(numbers)))
    sign = -1 if metric in HIGHER_IS_BETTER else 1
    return sorted(groups, key=lambda group: math.inf if group.mean is None else sign * group.mean)


def mean_and_half(numbers: list[float]) -> tuple[float | None, float | None]:
    """The mean and half the width of its 95 % interval, mean ± t(0.975, n - 1) s / sqrt(n) (Student 1908)."""
    from scipy.special import stdtrit

    n = len(numbers)
    if n < 2:
        return (numbers[0] if numbers else None), None
    mean = math.fsum(numbers) / n
    variance = math.fsum((number - mean) ** 2 for number in numbers) / (n - 1)
    return mean, float(stdtrit(n - 1, 0.975)) * math.sqrt(variance / n)


# ------------------------------------------------------------------------------------------- what jobs leave


def objective(result: dict, metric: str) -> float:
    """The value of a finished run that a sweeper optimises, the worst one there is if the run has none."""
    number = Job(Path(), {}, result).number(metric)
    return worst(metric) if number is None else number


def worst(metric: str | None) -> float:
    """What a failed job counts: optuna ends a study at a value that is none, and ranks an infinite one last."""
    return -math.inf if metric in HIGHER_IS_BETTER else math.inf


def write_failure(run: Path, overrides: list[str], error: BaseException) -> None:
    """command.txt and result.json of a job that ended by an error."""
    code = getattr(error, "exit_code", getattr(error, "code", 1))
    code = int(Exit.SIGINT) if isinstance(error, KeyboardInterrupt) else int(code)
    name = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    stopped = code in (Exit.SIGINT, Exit.SIGTERM)
    with suppress(OSError):  # a full disk; the error itself is told
        if not (run / "command.txt").exists():
            folder.add_command(run, overrides)
        text = name + (str(error).splitlines() or [""])[0]
        status = "interrupted" if stopped else "failed"
        folder.write_result(run, {"status": status, "exit_code": code, "error": text})


def write_results(sweep: Path) -> list[Job]:
    """results.csv: a row for each job with what was swept, how it ended and every single value of its result.json.

    Written anew after every job; jobs in several processes wait for each other. Nothing in a folder without jobs.
    """
    if not sweep.is_dir():
        return []
    with _locked(sweep):
        jobs = jobs_of(sweep)
        if not jobs:  # of another command, such as sample
            return []
        keys = swept(jobs)
        found = dict.fromkeys(name for job in jobs for name in job.result)
        names = [name for name in found if name not in ("status", "exit_code")]
        # many: the lock may hold on one machine only
        with replacing(sweep / "results.csv", many=True) as beside, open(beside, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["job", *keys, "status", "exit_code", *names, "folder"])
            for job in jobs:
                values = [job.words.get(key) for key in keys]
                ended = [job.status, job.result.get("exit_code"), *[job.result.get(name) for name in names]]
                writer.writerow([job.folder.name, *values, *ended, folder.shown(job.folder)])
    return jobs


@contextmanager
def _locked(path: Path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # no locks here; the table is written again after the last job
            lock(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)


# ------------------------------------------------------------------------------------------------------ summary


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
            from diffusion_lit.runs.sweep_picture import draw

            draw(groups, keys, metric, sweep)
            show(f"picture    {folder.shown(sweep / 'results.png')}")
        elif any(job.status == "finished" for job in jobs):
            command = f"python -m diffusion_lit.runs.sweeps {shlex.quote(str(folder.shown(sweep)))} <metric>"
            show(f"no result has a number {metric!r}; there are {', '.join(metrics(jobs))}: {command}")
        show(f"rows       {folder.shown(sweep / 'results.csv')}")
    except OSError as error:
        raise UserError(Exit.OUTPUT, f"{sweep} cannot be written to: {error}") from None


def metrics(jobs: list[Job]) -> list[str]:
    """What could be compared: the numbers of the results."""
    names = dict.fromkeys(name for job in jobs for name in job.result)
    return [name for name in names if name != "exit_code" and any(job.number(name) is not None for job in jobs)]


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


def table(groups: list[Group], keys: list[str], metrics: Sequence[str]):
    """A rich table, one line for each combination of swept values over seeds; `groups` are of the first metric."""
    from rich.table import Table

    numbers = Table(box=None, pad_edge=False)
    for key in keys:
        numbers.add_column(key)
    for name in ("n", *[cell for metric in metrics for cell in (metric, "± 95 %")], "not finished"):
        numbers.add_column(name, justify="right")
    numbers.add_column("")
    for k, group in enumerate(groups):
        bad = sum(job.status != "finished" for job in group.jobs)
        means = [(group.mean, group.half), *[_mean_of(group.jobs, metric) for metric in metrics[1:]]]
        cells = ["" if value is None else f"{value:.5g}" for pair in means for value in pair]
        best = "<- best" if k == 0 and group.numbers and len(groups) > 1 else ""
        numbers.add_row(*map(short, group.values), str(len(group.numbers)), *cells, str(bad or ""), best)
    return numbers


def _mean_of(jobs: list[Job], metric: str) -> tuple[float | None, float | None]:
    return mean_and_half([number for job in jobs if (number := job.number(metric)) is not None])


def short(value: str) -> str:
    """A number with at most four digits (optuna's have sixteen), other text as it is."""
    with suppress(ValueError):
        return min(value, f"{float(value):.4g}", key=len)
    return value


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
            raise UserError(Exit.CONFIG, "usage: python -m diffusion_lit.runs.sweeps <folder> [metric]")
        if not jobs_of(Path(sys.argv[1])):
            raise UserError(Exit.CHECKPOINT, f"{sys.argv[1]} is no folder of a sweep: there are no jobs in it")
        summarise(*[Path(sys.argv[1]), *sys.argv[2:]])


if __name__ == "__main__":
    main()
