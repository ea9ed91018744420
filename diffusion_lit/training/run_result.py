"""result.json of a run: read it where no steps are left to train, build it at the end, and say how to continue.

This module does not import torch, so that a complete run is reported at once.
"""

import logging
from pathlib import Path
from signal import Signals

from diffusion_lit.config.overrides import format_command, format_override
from diffusion_lit.runs.checkpoints import checkpoint_path
from diffusion_lit.runs.run_dir import display_path, read_result
from diffusion_lit.system.errors import SAVE_SIGNALS, Exit

log = logging.getLogger(__name__)


def existing_result(config: dict, run: Path, resume_from: Path | None) -> dict:
    """Return result.json if the run is complete or a callback stopped it and it still has callbacks, else {}."""
    result = read_result(run)
    is_stopped = result.get("stopped_by") == "callbacks" and bool(config["callbacks"])
    is_complete = result.get("status") == "finished" and result["steps"] >= config["max_steps"]
    if not resume_from or not (is_complete or is_stopped):
        return {}
    state, hint = "was stopped by a callback", "leave out that callback (callbacks=none: all)"
    if is_complete:
        state, hint = "is complete", "raise max_steps" if config["max_epochs"] is None else "raise max_epochs"
    log.info("%s %s at step %d of %d. To continue, %s.", run, state, result["steps"], config["max_steps"], hint)
    return result


def build_result(config: dict, callbacks, step: int) -> dict:
    """Return result.json at the end of training: status, exit code, speed, last losses and metrics, files.

    Args:
        config: resolved configuration.
        callbacks: `RunCallbacks` of the run.
        step: optimizer steps that were trained.
    """
    ended_by, seconds = callbacks.stop.ended_by, callbacks.metrics.clock.seconds
    grid = Path("samples", f"step-{step:08d}.png")
    is_complete = step >= config["max_steps"]
    exit_code, stopped_by = 0, None
    if ended_by is not None:
        exit_code = int(Exit.INTERRUPTED) if ended_by in SAVE_SIGNALS else 128 + ended_by  # 75: to be requeued
        stopped_by = Signals(ended_by).name
    elif not is_complete:  # the Timer of max_time acts after our callbacks, so that to them no step was the last
        is_timer = config["trainer"].get("max_time") and not callbacks.stop.milestones.is_last
        stopped_by = "trainer.max_time" if is_timer else "callbacks"
    return {
        "status": "interrupted" if ended_by is not None else "finished" if is_complete else "stopped early",
        "exit_code": exit_code,
        "stopped_by": stopped_by,
        "steps": step,
        "seconds": seconds,
        "images_per_second": step * config["global_batch_size"] / seconds if seconds else None,
        **callbacks.validation.last,
        "class_accuracy": None,
        **callbacks.sample_metrics.row,
        "checkpoint": str(checkpoint_path(Path(), step)),
        "grid": str(grid) if (callbacks.checkpoints.run / grid).exists() else None,
    }


def format_farewell(result: dict, run: Path) -> str:
    """Return the last lines of a run: where its files are and which command continues."""
    command = format_command("train", format_override("resume", display_path(run)))
    sample = format_command("sample", format_override("run", display_path(run)))
    if result["status"] == "interrupted":
        hint = "" if any(run.glob("samples/*.png")) else f"no samples yet. To generate some: {sample}\n"
        return f"{hint}stopped at step {result['steps']}, saved. To continue: {command}"
    lines = [f"run        {display_path(run)}"]
    if result["status"] == "stopped early":
        override = "callbacks=none" if result["stopped_by"] == "callbacks" else "trainer.max_time=null"
        stopped = f"by {result['stopped_by']} at step {result['steps']}"
        lines.append(f"stopped    {stopped}. To continue: {command} {override}")
    if result["grid"]:
        lines.append(f"samples    {display_path(run / result['grid'])}")
    if "classified_images" in result:
        real = f", real images {result['class_accuracy_real']:.1%}" if "class_accuracy_real" in result else ""
        accuracy, count = result["class_accuracy"], result["classified_images"]
        lines.append(f"accuracy   {accuracy:.1%} of {count} generated images are classified as their class{real}")
    lines.append(f"more       {sample}")
    return "\n".join(lines)
