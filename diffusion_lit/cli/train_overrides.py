"""The overrides that `train` composes, also with `resume=`. Torch is not imported."""

import re
import sys
from pathlib import Path

from diffusion_lit.cli.sweep_checks import refuse_run_dir
from diffusion_lit.config.compose import compose_configs, compose_hydra_settings
from diffusion_lit.config.expand import expand_overrides, merge_run_length
from diffusion_lit.config.overrides import format_override, read_override
from diffusion_lit.distributed import collectives
from diffusion_lit.runs import checkpoints, resume, run_dir, sweeps, teacher
from diffusion_lit.system.errors import ConfigError

MAX_CANDIDATES = 10  # runs that are listed


def prepare_train_overrides(overrides: list[str], config_dir: str | None) -> list[str]:
    """Return the overrides of a run; with `resume=` those of the run to continue.

    Raises:
        UserError: exit 2 for a sweep that resumes, or that several processes start,
            or for `resume=auto` with neither a run to continue nor a recipe to
            start; exit 4 if there is no such run.
    """
    run = read_override("resume", overrides)
    multirun = is_multirun()
    if multirun:
        refuse_run_dir(overrides)
    if multirun and (collectives.launcher_env("WORLD_SIZE") or 1) > 1:
        raise ConfigError("--multirun: the jobs start their own processes. Use python -m instead of torchrun or srun")
    if not isinstance(run, str) or not run:
        return expand_overrides(teacher.insert_teacher_recipe(overrides), config_dir)
    rest = [override for override in overrides if not override.startswith("resume=")]
    rest = teacher.insert_teacher_recipe(rest) if run == "auto" else rest
    if multirun and run == "auto":
        return find_sweep_to_continue(expand_overrides(rest, config_dir), config_dir)
    if multirun:
        hint = "A killed sweep is continued by resume=auto, or by the same command with hydra.sweep.dir=<its folder>"
        raise ConfigError(f"resume= continues one run, --multirun starts several. {hint}")
    if run != "auto":
        return merge_run_length(resume.merge_resume_overrides(run_dir.require_run_dir(run), rest))
    name = compose_configs("train", expand_overrides(rest, config_dir), config_dir, complete=False)[0].name
    newest = find_run_to_resume(Path("outputs", name))
    if newest is None:
        if not {"experiment", "data"} & {override.partition("=")[0] for override in rest}:
            raise ConfigError(_explain_nothing_to_resume(name))
        print(f"resume=auto: no run in outputs/{name} yet, starting a new one")
        return expand_overrides(rest, config_dir)
    print(f"resume=auto: {_describe_run(newest)}")
    return merge_run_length(resume.merge_resume_overrides(newest, rest))


def find_sweep_to_continue(overrides: list[str], config_dir: str | None) -> list[str]:
    """Return the overrides of a sweep, with the folder of the newest unfinished one that has the same."""
    compose_configs("train", overrides, config_dir)  # all faults at once
    parent = Path(compose_hydra_settings("train", overrides, config_dir).sweep.dir).parent
    newest = sweeps.find_unfinished_sweep(parent, overrides)
    if newest is None:
        print(f"resume=auto: no unfinished sweep with these overrides in {parent}, starting a new one")
        return overrides
    print(f"resume=auto: continuing {newest}")
    return [*overrides, format_override("hydra.sweep.dir", newest)]


def find_run_to_resume(folder: Path) -> Path | None:
    """Return the newest run in a folder that has not finished, else the newest of all; None without runs."""
    unfinished = run_dir.find_newest_run(folder, accepts=lambda run: _status(run) != "finished")
    return unfinished or run_dir.find_newest_run(folder)


def _status(run: Path) -> str:
    result = run_dir.read_result(run)
    length = re.search(r"^max_steps: (\d+)$", (run / "config.yaml").read_text(encoding="utf-8"), re.MULTILINE)
    is_extended = bool(length) and result.get("steps", 0) < int(length[1])  # and was killed, or runs
    is_incomplete = is_extended and result.get("status") == "finished"
    return "interrupted" if is_incomplete else result.get("status", "interrupted")


def _describe_run(run: Path) -> str:
    """Return the folder of a run, its last checkpoint and its status."""
    steps = checkpoints.list_steps(run)
    return f"{run}, {f'step {steps[-1]:,}' if steps else 'no checkpoint'}, {_status(run)}"


def _explain_nothing_to_resume(name: str) -> str:
    found = [run for folder in sorted(Path("outputs").glob("*/")) if (run := find_run_to_resume(folder))]
    start = f"resume=auto: no run in outputs/{name}."
    if not found:
        return f"{start} No other name has runs. Add experiment= or data= to start a new run"
    lines = [f"name={run.parent.name}: {_describe_run(run)}" for run in found[:MAX_CANDIDATES]]
    lines += [f"and {len(found) - MAX_CANDIDATES} more"] if len(found) > MAX_CANDIDATES else []
    return "\n  ".join([f"{start} Add one of these names, or experiment= or data= to start a new run:", *lines])


def is_multirun() -> bool:
    """Return whether the command line of this process starts a sweep."""
    return bool({"-m", "--multirun", "hydra.mode=MULTIRUN"} & set(sys.argv))
