"""The jobs of a sweep differ, and no two write to one place."""

import json
from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

from diffusion_lit.config.overrides import format_override
from diffusion_lit.system.errors import ConfigError

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
