"""What a distilled run knows of its stages, its steps and its teacher, without torch."""

import re
from pathlib import Path

from diffusion_lit.runs import checkpoints


def stage_at(step: int, max_steps: int, count: int) -> int:
    """Return the stage of optimizer step `step`, counted from 0, in a run of `count` stages of equal length."""
    return min(step * count // max_steps, count - 1)


def find_learned_steps(config: dict, checkpoint: Path) -> int | None:
    """Return the sampler steps that the student of a checkpoint has learned; None if it is no student.

    Args:
        config: stored configuration of the run.
        checkpoint: its file. A published model has learned the last stage.
    """
    stages = config.get("distill", {}).get("stages")
    if not stages:
        return None
    match = re.fullmatch(r"step-(\d+)\.ckpt", checkpoint.resolve().name)
    if not match:
        return stages[-1]
    return stages[stage_at(max(0, int(match[1]) - 1), config["max_steps"], len(stages))]


def pin_sampler(config: dict, run: Path, which: str) -> dict:
    """Return a stored configuration with the sampler steps that the student of a checkpoint has learned.

    Args:
        config: stored configuration of the run.
        run: the run.
        which: "last", "best" or a step.
    """
    if not config.get("distill", {}).get("stages"):
        return config
    steps = find_learned_steps(config, checkpoints.select_checkpoint(run, which, warn=lambda message: None))
    return config | {"sampler": config["sampler"] | {"steps": steps}}


def describe_teacher(config: dict) -> dict:
    """Return method and teacher of a student, for a manifest; {} for any other run."""
    settings = config.get("distill")
    if not settings:
        return {}
    return {"distilled": {"method": settings["name"], "teacher": Path(settings["teacher"]).name}}
