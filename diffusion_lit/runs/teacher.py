"""The recipe of a student, `distill=<method> distill.teacher=<run>`: that of its teacher, without torch."""

import os
from pathlib import Path

from diffusion_lit.config.groups import read_option
from diffusion_lit.config.overrides import format_override, read_override
from diffusion_lit.config.value_types import format_value
from diffusion_lit.runs import resume, stored_config
from diffusion_lit.runs.diffusers_format import resolve_run
from diffusion_lit.runs.run_dir import read_published_command, require_run_dir
from diffusion_lit.runs.sample_request import TRAINING_ONLY
from diffusion_lit.runs.stored_config import GUIDANCE_KEYS
from diffusion_lit.system.errors import ConfigError, raise_faults

GROUPS = ("model", "diffusion")  # which a student has from its teacher
DATA_KEYS = ("image_size", "channels", "class_names")
REPLACED = ("weighting", "sampler", "lr_schedule", "distill")  # groups of which nothing is taken from the teacher
FREE = ("model.dropout", "model.image_size", "model.channels", *[f"diffusion.{key}" for key in TRAINING_ONLY])


def insert_teacher_recipe(overrides: list[str]) -> list[str]:
    """Return the overrides of a student: those of its teacher, what distillation implies, and its own.

    Without `distill=<method>` they are returned as they are.

    Raises:
        UserError: exit 2 without `distill.teacher`; exit 4 if it is no run.
    """
    method, teacher = (read_override(key, overrides) for key in ("distill", "distill.teacher"))
    if not isinstance(method, str) or method == "none":
        return overrides
    if not isinstance(teacher, str) or not teacher:
        raise ConfigError(f"distill={method}: needs one run to learn from. Add distill.teacher=<run folder>")
    option = read_option("distill", method)
    run = require_run_dir(read_override("run", resolve_run([format_override("run", teacher)])))
    if not (run / "command.txt").is_file() and not read_published_command(run):
        fault = f"distill.teacher={teacher}: this model does not say how it was trained"
        raise ConfigError(f"{fault}. Choose the run that it was exported from")
    config = stored_config.read_sampling_config(run)
    stages = read_override("distill.stages", overrides) or option["stages"]
    implied = {
        "name": f"{config['name']}_student",
        "max_steps": max(len(stages), config["max_steps"] // 2),
        "optimizer.lr": config["optimizer"]["lr"] / (1 if config.get("distill") else 5),  # a fifth (docs/few_steps.md)
        "init_from": None,
        "ema_snapshot_every": 0,  # `ema_length` would mix the students of several stages
        "label_dropout": 0.0,  # the guidance of the teacher is learned, other guidance is not possible
        "guidance_scale": 1.0,
        "guidance_interval": None,
        "guidance_rescale": 0.0,
        **{f"distill.{key}": config[key] for key in GUIDANCE_KEYS},
        "weighting": "truncated_snr",
        "weighting.maximum": 20.0,
        "sampler": "ddim",
        "sampler.steps": stages[-1],
        "lr_schedule": "cosine_restarts",
        "lr_schedule.cycles": len(stages),
        "lr_schedule.warmup_steps": 0,
    }
    own = [text for text in overrides if not text.startswith("distill.teacher=")]
    typed = {text.partition("=")[0].lstrip("+~") for text in own} - {"distill"}
    typed |= {"max_steps"} if "max_epochs" in typed else set()
    added = [format_override(key, value) for key, value in implied.items() if not {key, key.split(".")[0]} & typed]
    added += [format_override("distill.teacher", os.path.abspath(run))]
    new = [*added, *own]
    recipe = resume.merge_overrides(run, new)
    return [text for text in recipe if text in new or text.split("=")[0].split(".")[0] not in REPLACED]


def check_teacher(config: dict) -> None:
    """Raise UserError (exit 2) if a student differs from its teacher in network, process or form of the images.

    Also if the teacher is a student itself, and would teach another number of steps than it has learned.

    Args:
        config: resolved configuration of the student.
    """
    if not config.get("distill"):
        return
    run = Path(config["distill"]["teacher"])
    stored = stored_config.read_sampling_config(require_run_dir(run))
    theirs, ours = _flatten_fixed(stored), _flatten_fixed(config)
    faults = [
        f"{key}={format_value(ours.get(key))}: the teacher has {format_value(theirs[key])}, and its student too"
        for key in theirs
        if theirs[key] != ours.get(key) and key not in FREE
    ]
    raise_faults(f"{run} cannot teach this student. Leave out:", faults)
    learned, steps = stored["sampler"]["steps"], config["distill"]["teacher_steps"]
    if stored.get("distill") and steps != learned:  # a student makes good images in no other number of steps
        halves = [learned >> k for k in range(1, learned.bit_length()) if learned % (1 << k) == 0]
        keys = f"distill.teacher_steps={learned} {format_override('distill.stages', halves)}"
        advice = f"Add {keys}" if halves else "They cannot be halved, so choose another teacher"
        raise ConfigError(f"distill.teacher_steps={steps}: {run.name} has learned {learned} steps. {advice}")


def _flatten_fixed(config: dict) -> dict:
    data = {key: config["data"].get(key) for key in DATA_KEYS}
    return resume.flatten_config({group: config[group] for group in GROUPS} | {"data": data})
