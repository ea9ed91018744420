"""Read the folder of a sweep: its jobs, their statistics over seeds, and results.csv.

A job is a run folder. command.txt has its overrides, result.json how it ended.
"""

import csv
import json
import math
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from diffusion_lit.config.metric_columns import COLUMNS
from diffusion_lit.config.overrides import read_override
from diffusion_lit.runs import run_dir
from diffusion_lit.system.console import escape_controls
from diffusion_lit.system.errors import Exit, OutputError, UserError
from diffusion_lit.system.files import write_atomically, write_text_atomically
from diffusion_lit.system.platform import lock

HIGHER_IS_BETTER = {name for name, column in COLUMNS.items() if column.higher_is_better}  # of all others lower is
HIGHER_IS_BETTER |= {"class_accuracy_real", "images_per_second"}
RECIPE_GROUPS = {"weighting", "diffusion"}  # between their values validation losses do not rank samples
NOT_SWEPT = {"resume", "run_dir", "accept", "run"}  # a resumed job is still the same job


@dataclass(frozen=True)
class Job:
    """One run of a sweep."""

    folder: Path
    overrides: dict[str, str]  # of an evaluation also those of its run
    result: dict[str, object]  # single values of result.json

    @property
    def status(self) -> str:
        """Status of result.json; "unfinished" for a run that was killed or still runs."""
        return self.result.get("status", "unfinished")

    def value(self, metric: str) -> float | None:
        """Return a metric; None if the run did not finish or the value is not a finite number."""
        value = self.result.get(metric)
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return float(value) if self.status == "finished" and is_number else None


@dataclass(frozen=True)
class JobGroup:
    """The jobs with the same swept values, over seeds."""

    values: tuple[str, ...]
    first: int  # index of its first job in the sweep
    jobs: list[Job]
    numbers: list[float]  # of the jobs that have the metric
    mean: float | None
    half_width: float | None  # of the 95 % interval of the mean; None for fewer than two numbers


# ------------------------------------------------------------------------------------------ reading


def list_jobs(sweep: Path) -> list[Job]:
    """Return the jobs that were started, in their order."""
    folders = [path for path in sweep.glob("*/") if (path / "train.log").exists() or (path / "command.txt").exists()]
    return [_read_job(path) for path in sorted(folders, key=lambda path: (path.name.zfill(9), path.name))]


def _read_job(path: Path) -> Job:
    result = run_dir.read_result(path)
    own = read_job_overrides(path)
    run = read_override("run", [f"run={own['run']}"]) if "run" in own else None
    trained = read_job_overrides(Path(run)) if isinstance(run, str) else {}
    overrides = (trained or result.get("train_overrides", {})) | own  # that of result.json is without folders
    numbers = {key: value for key, value in result.items() if not isinstance(value, list | dict)}
    shown = {key: escape_controls(value) for key, value in overrides.items() if key not in NOT_SWEPT}
    return Job(path, shown, numbers)


def read_job_overrides(path: Path) -> dict[str, str]:
    """Return the overrides of a folder by key; {} for a job that ended before it wrote them."""
    with suppress(UserError):
        return dict(override.partition("=")[::2] for override in run_dir.read_overrides(path))
    return {}


def find_swept_keys(jobs: list[Job]) -> list[str]:
    """Return the keys that have more than one value."""
    keys = dict.fromkeys(key for job in jobs for key in job.overrides)
    return [key for key in keys if len({job.overrides.get(key) for job in jobs if job.overrides}) > 1]


def list_metrics(jobs: list[Job]) -> list[str]:
    """Return the metrics that at least one job has."""
    names = dict.fromkeys(name for job in jobs for name in job.result if name != "exit_code")
    return [name for name in names if any(job.value(name) is not None for job in jobs)]


def read_sweep_metric(jobs: list[Job]) -> str:
    """Return the metric that a sweep compares, from the configuration of its first job that has one."""
    for job in jobs:
        with suppress(UserError):
            return choose_metric(run_dir.read_run_config(job.folder))
    return "val/loss"


def choose_metric(config: Mapping) -> str:
    """Return `metric`; null: KID (FD of few images is withheld) or class accuracy if measured, else `val/error`."""
    if config["metric"] is not None:
        return config["metric"]
    if config["metrics_every"] and "kid" in config["metrics"]:
        return "kid"
    return "class_accuracy" if config["data"].get("classifier_images") else "val/error"


def explain_misleading_metric(metric: str | None, keys: Iterable[str]) -> str | None:
    """Return why a validation loss does not rank runs that differ in these keys; None if it may."""
    recipes = sorted(key for key in keys if key.partition(".")[0] in RECIPE_GROUPS)
    if not recipes or not (metric or "").startswith("val/"):
        return None
    changed = f"ranks runs of one recipe only, and {', '.join(recipes)} changes the recipe"
    return f"metric={metric}: {changed}. Compare them by metric=kid, with metrics_every=<max_steps>"


# ------------------------------------------------------------------------------------------ statistics


def group_jobs(jobs: list[Job], keys: list[str], metric: str) -> list[JobGroup]:
    """Return the jobs grouped by their values of `keys`, best mean first, those without a mean last."""
    members: dict[tuple[str, ...], list[Job]] = {}
    for job in jobs:
        members.setdefault(tuple(job.overrides.get(key, "") for key in keys), []).append(job)
    groups = []
    for values, same in members.items():
        numbers = [number for job in same if (number := job.value(metric)) is not None]
        groups.append(JobGroup(values, jobs.index(same[0]), same, numbers, *compute_mean_interval(numbers)))
    return sorted(groups, key=lambda group: rank_value(group.mean, metric))


def rank_value(value: float | None, metric: str) -> float:
    """Return a sort key that puts the best value first and None last."""
    if value is None:
        return math.inf
    return -value if metric in HIGHER_IS_BETTER else value


def compute_mean_of_jobs(jobs: list[Job], metric: str) -> tuple[float | None, float | None]:
    """Return mean and half width of the 95 % interval of a metric over jobs."""
    return compute_mean_interval([number for job in jobs if (number := job.value(metric)) is not None])


def compute_mean_interval(numbers: list[float]) -> tuple[float | None, float | None]:
    """Return the mean and half the width of its 95 % interval, mean ± t(0.975, n - 1) s / sqrt(n) (Student 1908).

    What too few numbers do not determine is None.
    """
    from scipy.special import stdtrit

    n = len(numbers)
    if n < 2:
        return (numbers[0] if numbers else None), None
    return fmean(numbers), float(stdtrit(n - 1, 0.975)) * stdev(numbers) / math.sqrt(n)


def shorten_number(text: str) -> str:
    """Return a number with at most four digits (optuna's have sixteen), other text as it is."""
    with suppress(ValueError):
        return min(text, f"{float(text):.4g}", key=len)
    return text


def compute_objective(result: dict, metric: str) -> float:
    """Return the value of a run that a sweeper optimizes; the worst value if the run has none."""
    value = Job(Path(), {}, result).value(metric)
    return get_worst_objective(metric) if value is None else value


def get_worst_objective(metric: str | None) -> float:
    """Return the value of a failed job.

    It is infinite: optuna ends a study at None.
    """
    return -math.inf if metric in HIGHER_IS_BETTER else math.inf


# ------------------------------------------------------------------------------------------ killed sweeps


def check_continuation(sweep: Path, overrides: list[str], is_random: bool) -> None:
    """Check that the folder of a sweep is new, or can be continued with these overrides.

    Args:
        sweep: the folder.
        overrides: of the command line, without the folder.
        is_random: whether a sweeper would choose other values than before.

    Raises:
        UserError: exit 5 if it has the jobs of another sweep.
    """
    if not list_jobs(sweep):
        return
    where = f"hydra.sweep.dir={sweep}"
    if _read_sweep(sweep).get("overrides") != overrides:
        hint = "Choose a new folder, or repeat the command of that sweep to continue it"
        raise OutputError(f"{where}: has the jobs of another sweep. {hint}")
    if is_random:
        hint = "Choose a new folder. Sweeps with hydra.sweeper.sampler.seed=<int> can be continued"
        raise OutputError(f"{where}: its sweeper would choose other values now. {hint}")


def find_unfinished_sweep(parent: Path, overrides: list[str]) -> Path | None:
    """Return the newest sweep with these overrides in `parent` of which a job has not finished."""
    found = []
    for file in parent.glob("*/sweep.json"):
        stored, jobs = _read_sweep(file.parent), list_jobs(file.parent)
        done = sum(job.status == "finished" for job in jobs)
        if stored.get("overrides") == overrides and done < stored["jobs"]:
            found.append(file.parent)
    return max(found, default=None, key=lambda sweep: ((sweep / "sweep.json").stat().st_mtime_ns, sweep.name))


def find_finished_value(folder: Path, overrides: list[str], metric: str | None) -> float | None:
    """Return the value of a job that has finished with these overrides; None if it has not."""
    result = run_dir.read_result(folder)
    if result.get("status") != "finished" or not is_same_job(folder, overrides):
        return None
    return compute_objective(result, metric or "")


def is_same_job(folder: Path, overrides: list[str]) -> bool:
    """Return whether a folder belongs to the job with these overrides, which may have been resumed with others."""
    with suppress(UserError):
        return run_dir.read_overrides(folder, start=0) == overrides
    return False


def record_sweep(sweep: Path, overrides: list[str], jobs: int) -> None:
    """Write sweep.json, by which the same overrides continue a sweep; `jobs` is their number."""
    text = json.dumps({"overrides": overrides, "jobs": jobs}, indent=2)
    write_text_atomically(sweep / "sweep.json", text + "\n")


def _read_sweep(sweep: Path) -> dict:
    with suppress(OSError, ValueError):
        return dict(json.loads((sweep / "sweep.json").read_text(encoding="utf-8")))
    return {}


# ------------------------------------------------------------------------------------------ writing


def write_failed_job(run: Path, overrides: list[str], error: BaseException) -> None:
    """Write command.txt and result.json of a job that ended by an error."""
    code = getattr(error, "exit_code", getattr(error, "code", 1))
    code = int(Exit.SIGINT if isinstance(error, KeyboardInterrupt) else code)
    name = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    status = "interrupted" if code in (Exit.SIGINT, Exit.SIGTERM) else "failed"
    text = name + (str(error).splitlines() or [""])[0]
    with suppress(OSError):  # a full disk; the error itself is reported
        if not (run / "command.txt").exists():
            run_dir.append_command(run, overrides)
        run_dir.write_result(run, {"status": status, "exit_code": code, "error": text})


def write_sweep_results(sweep: Path) -> list[Job]:
    """Write results.csv, a row for each job with its swept values, status and results, and return the jobs.

    Writes nothing in a folder without jobs.

    Called after every job, also of jobs in several processes, which wait for each
    other.
    """
    if not sweep.is_dir():
        return []
    descriptor = os.open(sweep, os.O_RDONLY)
    try:
        with suppress(OSError):  # without locks the table is complete after the last job
            lock(descriptor, wait=True)
        jobs = list_jobs(sweep)
        if jobs:
            _write_table(sweep / "results.csv", jobs)
        return jobs
    finally:
        os.close(descriptor)


def _write_table(path: Path, jobs: list[Job]) -> None:
    keys = find_swept_keys(jobs)
    names = ["status", "exit_code"]
    names += dict.fromkeys(name for job in jobs for name in job.result if name not in names)
    # many: the lock may hold on one host only
    with write_atomically(path, concurrent=True) as beside, open(beside, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["job", *keys, *names, "folder"])
        for job in jobs:
            values = {"status": job.status} | {name: job.result.get(name) for name in names[1:]}
            swept = [job.overrides.get(key) for key in keys]
            writer.writerow([job.folder.name, *swept, *values.values(), run_dir.display_path(job.folder)])
