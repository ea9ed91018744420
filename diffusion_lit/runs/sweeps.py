"""The folder of a sweep: its jobs, and what they come to over seeds.

A job is a run folder: command.txt says what it was, result.json how it ended.
"""

import csv
import math
import os
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from diffusion_lit.runs import run_dir
from diffusion_lit.system.errors import Exit, UserError
from diffusion_lit.system.files import write_atomically
from diffusion_lit.system.platform import lock

HIGHER_IS_BETTER = {  # of result.json; else lower is
    "class_accuracy", "class_accuracy_real", "images_per_second", "precision", "recall", "density", "coverage",
}  # fmt: skip
NOT_SWEPT = {"resume", "run_dir", "accept", "run"}  # a job that was resumed is still the same job


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
class JobGroup:
    """The jobs of one combination of swept values, over seeds."""

    values: tuple[str, ...]
    first: int  # place of its first job among all
    jobs: list[Job]
    numbers: list[float]  # of the jobs that have one
    mean: float | None
    half: float | None  # of the 95 % interval of the mean; None with less than two numbers


# ------------------------------------------------------------------------------------------------------ reading


def list_jobs(sweep: Path) -> list[Job]:
    """The jobs that were started, in their order."""
    folders = [path for path in sweep.glob("*/") if (path / "train.log").exists() or (path / "command.txt").exists()]
    return [_job(path) for path in sorted(folders, key=lambda path: (path.name.zfill(9), path.name))]


def _job(path: Path) -> Job:
    words = read_job_overrides(path)
    result = run_dir.read_result(path)
    words = result.get("trained", {}) | words
    numbers = {key: value for key, value in result.items() if not isinstance(value, list | dict)}
    return Job(path, {key: value for key, value in words.items() if key not in NOT_SWEPT}, numbers)


def read_job_overrides(path: Path) -> dict[str, str]:
    """Key to value of the command line that a folder holds; nothing of one that was stopped before it wrote one."""
    with suppress(UserError):
        return dict(word.partition("=")[::2] for word in run_dir.read_overrides(path))
    return {}


def find_swept_keys(jobs: list[Job]) -> list[str]:
    """The keys that have more than one value."""
    keys = dict.fromkeys(key for job in jobs for key in job.words)
    return [key for key in keys if len({job.words.get(key) for job in jobs if job.words}) > 1]


def read_sweep_metric(jobs: list[Job]) -> str:
    """What the sweep compares, by the configuration of its first job that has one."""
    for job in jobs:
        with suppress(UserError):
            return run_dir.read_run_config(job.folder)["metric"]
    return "val/loss"


def group_jobs(jobs: list[Job], keys: list[str], metric: str) -> list[JobGroup]:
    """The jobs by their values of `keys`, best mean first, those without a mean last."""
    members: dict[tuple[str, ...], list[Job]] = {}
    for job in jobs:
        members.setdefault(tuple(job.words.get(key, "") for key in keys), []).append(job)
    groups = []
    for values, same in members.items():
        numbers = [number for job in same if (number := job.number(metric)) is not None]
        groups.append(JobGroup(values, jobs.index(same[0]), same, numbers, *mean_and_half_width(numbers)))
    sign = -1 if metric in HIGHER_IS_BETTER else 1
    return sorted(groups, key=lambda group: math.inf if group.mean is None else sign * group.mean)


def mean_and_half_width(numbers: list[float]) -> tuple[float | None, float | None]:
    """The mean and half the width of its 95 % interval, mean ± t(0.975, n - 1) s / sqrt(n) (Student 1908)."""
    from scipy.special import stdtrit

    n = len(numbers)
    if n < 2:
        return (numbers[0] if numbers else None), None
    return fmean(numbers), float(stdtrit(n - 1, 0.975)) * stdev(numbers) / math.sqrt(n)


# ------------------------------------------------------------------------------------------- what jobs leave


def sweep_objective(result: dict, metric: str) -> float:
    """The value of a finished run that a sweeper optimises, the worst one there is if the run has none."""
    number = Job(Path(), {}, result).number(metric)
    return worst_objective(metric) if number is None else number


def worst_objective(metric: str | None) -> float:
    """What a failed job counts: optuna ends a study at a value that is none, and ranks an infinite one last."""
    return -math.inf if metric in HIGHER_IS_BETTER else math.inf


def write_failed_job(run: Path, overrides: list[str], error: BaseException) -> None:
    """command.txt and result.json of a job that ended by an error."""
    code = getattr(error, "exit_code", getattr(error, "code", 1))
    code = int(Exit.SIGINT) if isinstance(error, KeyboardInterrupt) else int(code)
    name = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    stopped = code in (Exit.SIGINT, Exit.SIGTERM)
    with suppress(OSError):  # a full disk; the error itself is told
        if not (run / "command.txt").exists():
            run_dir.append_command(run, overrides)
        text = name + (str(error).splitlines() or [""])[0]
        status = "interrupted" if stopped else "failed"
        run_dir.write_result(run, {"status": status, "exit_code": code, "error": text})


def write_sweep_results(sweep: Path) -> list[Job]:
    """results.csv: a row for each job with what was swept, how it ended and every single value of its result.json.

    Written anew after every job; jobs in several processes wait for each other. Nothing in a folder without jobs.
    """
    if not sweep.is_dir():
        return []
    with _locked(sweep):
        jobs = list_jobs(sweep)
        if not jobs:  # of another command, such as sample
            return []
        keys = find_swept_keys(jobs)
        found = dict.fromkeys(name for job in jobs for name in job.result)
        names = [name for name in found if name not in ("status", "exit_code")]
        # many: the lock may hold on one machine only
        with write_atomically(sweep / "results.csv", many=True) as beside, open(beside, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["job", *keys, "status", "exit_code", *names, "folder"])
            for job in jobs:
                values = [job.words.get(key) for key in keys]
                ended = [job.status, job.result.get("exit_code"), *[job.result.get(name) for name in names]]
                writer.writerow([job.folder.name, *values, *ended, run_dir.display_path(job.folder)])
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


def list_metrics(jobs: list[Job]) -> list[str]:
    """What could be compared: the numbers of the results."""
    names = dict.fromkeys(name for job in jobs for name in job.result)
    return [name for name in names if name != "exit_code" and any(job.number(name) is not None for job in jobs)]


def shorten_number(value: str) -> str:
    """A number with at most four digits (optuna's have sixteen), other text as it is."""
    with suppress(ValueError):
        return min(value, f"{float(value):.4g}", key=len)
    return value


def mean_over_jobs(jobs: list[Job], metric: str) -> tuple[float | None, float | None]:
    return mean_and_half_width([number for job in jobs if (number := job.number(metric)) is not None])
