"""Checks of a sweep: its jobs differ and write to different places, and its metric is measured and can rank them."""

import json
import logging
from collections.abc import Iterable, Sequence

from omegaconf import DictConfig, OmegaConf

from diffusion_lit.config.metric_columns import METRIC_COLUMNS
from diffusion_lit.config.overrides import format_override, read_override
from diffusion_lit.runs import sweeps
from diffusion_lit.system.errors import ConfigError

log = logging.getLogger("diffusion_lit.sweep")
TIMESTAMPED = ("sample",)  # commands with a new folder for each job
NUMBERED = ("train", "evaluate")  # commands with a folder in that of the sweep for each job


def refuse_run_dir(overrides: Sequence[str]) -> None:
    """Raise UserError (exit 2) if `run_dir=` is typed for a sweep of `train`."""
    for override in overrides:
        if override.startswith("run_dir="):
            _refuse_folder(override)


def require_distinct(verb: str, configs: Sequence[DictConfig], swept: Sequence[str], is_grid: bool) -> None:
    """Raise UserError (exit 2) if two jobs of a sweep are the same, or write to one place.

    Args:
        verb: name of the command.
        configs: of the jobs.
        swept: overrides that sweep.
        is_grid: whether every combination is a job, and nothing chooses among them.
    """
    jobs = [OmegaConf.to_container(config) for config in configs]
    texts = [json.dumps(job, sort_keys=True, default=str) for job in jobs]
    firsts: dict[str, int] = {}
    for k, text in enumerate(texts if is_grid else ()):
        if (first := firsts.setdefault(text, k)) < k:
            fault = f"job {k + 1} repeats job {first + 1}"
            raise ConfigError(f"{' '.join(swept)}: {fault}. Write each value once")
    for job in jobs if verb in NUMBERED else ():
        if job.get("out"):
            _refuse_folder(format_override("out", job["out"]))
    if verb in NUMBERED or "out" not in jobs[0]:
        return
    places = [_find_place(verb, number, job) for number, job in enumerate(jobs)]
    if len(set(places)) < len(places):
        advice = "Sweep out= too, such as out=a,b"
        raise ConfigError(f"--multirun: two jobs write to one place. {advice}")


def _find_place(verb: str, number: int, job: dict) -> object:
    """Return what decides where a job writes."""
    if job.get("out"):
        return job["out"]
    if verb in TIMESTAMPED:
        return number
    return json.dumps([job.get(key) for key in ("run", "sweep", "runs")])


def _refuse_folder(override: str) -> None:
    folder = override.partition("=")[2]
    fault = "the jobs of a sweep are numbered folders in one"
    raise ConfigError(f"{override}: {fault}. Write hydra.sweep.dir={folder}")


def check_metric(
    config: DictConfig, overrides: Sequence[str], keys: Iterable[str], direction: object = None
) -> str | None:
    """Return the metric that a sweep compares; None for a command without one. Warn if it cannot rank the jobs.

    Args:
        config: of the first job.
        overrides: of the command line.
        keys: that are swept.
        direction: of a sweeper that optimizes the metric.

    Raises:
        UserError: exit 2 for a metric that no job measures, or a sweeper that optimizes towards its worst value.
    """
    metric = sweeps.choose_metric(config) if "metric" in config else None
    if direction is not None:
        _check_direction(metric, direction)
    _check_measured(config, list(overrides))
    if reason := sweeps.explain_misleading_metric(metric, keys):
        log.warning("%s", reason)
    return metric


def _check_measured(config: DictConfig, overrides: list[str]) -> None:
    """Raise UserError (exit 2) if a sweep of `train` compares a metric that was typed and that no job measures."""
    name = read_override("metric", overrides)
    metric = next((metric for metric, columns in METRIC_COLUMNS.items() if name in columns), None)
    if not metric or "metrics_every" not in config or (config.metrics_every and metric in config.metrics):
        return
    if not (name == "class_accuracy" and config.data.get("classifier_images")):
        raise ConfigError(f"metric={name}: not measured. Add metrics_every={config.max_steps} 'metrics=[{metric}]'")


def _check_direction(metric: str | None, direction: object) -> None:
    """Raise UserError (exit 2) if a sweeper optimizes towards the worst value, or nothing."""
    if metric is None:
        raise ConfigError("hydra/sweeper: this command has no metric to optimize")
    best = "maximize" if metric in sweeps.HIGHER_IS_BETTER else "minimize"
    if getattr(direction, "name", direction) != best:
        better = "higher" if best == "maximize" else "lower"
        raise ConfigError(f"metric={metric}: {better} is better. Add hydra.sweeper.direction={best}")
