"""Messages of a run: what is about to be trained, how it ended, how to go on."""

from pathlib import Path

import torch

from diffusion_lit.config.overrides import format_command, format_override
from diffusion_lit.data.datamodule import ImageDataModule
from diffusion_lit.distributed import collectives
from diffusion_lit.imaging.sizes import format_size
from diffusion_lit.runs.checkpoints import checkpoint_path
from diffusion_lit.runs.run_dir import display_path
from diffusion_lit.system.errors import SAVE_SIGNALS, Exit
from diffusion_lit.training.module import DiffusionModule, checkpoint_bytes, snapshot_bytes
from diffusion_lit.training.optimizers import warmup_steps
from diffusion_lit.training.trainer import RunCallbacks


def summary(config: dict, data: ImageDataModule, module: DiffusionModule, run: Path, start: Path | None) -> str:
    """What is about to be trained, on what, and what a checkpoint costs."""
    names, diffusion = config["data"]["class_names"], config["diffusion"]
    parameters = sum(p.numel() for p in module.net.parameters())
    n, batch = len(data.train), config["global_batch_size"]
    size = format_size(config["data"]["image_size"])
    classes = f"{len(names)} classes" if names else "no classes"
    held_out = f"{len(data.val):,} held out" if data.val else "none held out"
    on_gpu = torch.cuda.is_available() and config["strategy"]["accelerator"] != "cpu"
    device = torch.cuda.get_device_name() if on_gpu else f"{torch.get_num_threads()} CPU threads"
    if collectives.world_size() > 1:
        device += f" in each of {collectives.world_size()} processes"
    lines = [
        f"run        {display_path(run)}",
        f"data       {n:,} pictures {size}x{config['data']['channels']}, {classes}; {held_out}",
        f"network    {type(module.net).__name__}, {parameters / 1e6:.2f} M parameters, "
        f"{config['strategy']['precision']} on {device}",
        f"diffusion  {module.diffusion.process.title}, "
        f"{diffusion['prediction_type']}, weighting {config['weighting']['_target_'].rpartition('.')[2]}",
        f"training   {config['max_steps']:,} steps of {batch} images = {config['max_steps'] * batch / n:,.1f} epochs",
        f"on disk    {checkpoint_bytes(module) / 2**20:,.1f} MiB a checkpoint, "
        f"{config['keep_checkpoints']} and the best are kept",
    ]
    if module.tracked_emas:
        lines.append(f"           and {snapshot_bytes(module, config) / 2**20:,.1f} MiB of snapshots for ema_length")
    if note := getattr(data.source, "note", None):
        lines.append(f"note       {note}")
    if n < batch:
        lines.append(f"note       fewer pictures ({n}) than a batch ({batch}): a batch holds some of them twice")
    if (warm := warmup_steps(config["lr_schedule"], config["max_steps"])) > max(config["max_steps"], 100):
        lines.append(
            f"warning    the learning rate rises for {warm:,} steps, longer than the run is, and never reaches "
            "optimizer.lr; lr_schedule.warmup_fraction=0.05 is a share of any run"
        )
    weight = module.diffusion.weight
    if weight[-1] == 0:
        lines.append(
            f"warning    the weighting is 0 at the noisiest timestep ({len(weight) - 1}), where sampling starts: "
            "that step is never trained; weighting=truncated_snr or snr_plus_one trains it"
        )
    if start:
        lines.append(f"resuming   {start.name}")
    return "\n".join(lines)


def result_of(config: dict, callbacks: RunCallbacks, step: int) -> dict:
    """Return result.json as training leaves it: how it ended, how fast it was, where checkpoint and samples are."""
    ended_by, seconds = callbacks.stop.ended_by, callbacks.metrics.clock.seconds
    grid = Path("samples", f"step-{step:08d}.png")
    is_complete = step >= config["max_steps"]
    return {
        "status": "interrupted" if ended_by is not None else "finished" if is_complete else "stopped early",
        "exit_code": exit_code_of(ended_by),
        "steps": step,
        "seconds": seconds,
        "images_per_second": step * config["global_batch_size"] / seconds if seconds else None,
        **callbacks.validation.last,
        "class_accuracy": None,
        "checkpoint": str(checkpoint_path(Path(), step)),
        "grid": str(grid) if (callbacks.checkpoints.run / grid).exists() else None,
    }


def exit_code_of(ended_by: int | None) -> int:
    """0, or what a signal ends with; SIGUSR1 ends a run that is queued again."""
    if ended_by is None:
        return 0
    return int(Exit.INTERRUPTED) if ended_by in SAVE_SIGNALS else 128 + ended_by


def farewell(result: dict, run: Path) -> str:
    """The last lines of a run: where everything is and how to go on."""
    if result["status"] == "interrupted":
        command = format_command("train", format_override("resume", display_path(run)))
        return f"stopped at step {result['steps']}, saved; go on with: {command}"
    lines = [f"run        {display_path(run)}"]
    if result["status"] == "stopped early":
        lines.append(f"stopped    early, by a callback, at step {result['steps']}")
    if result["grid"]:
        lines.append(f"samples    {display_path(run / result['grid'])}")
    if result["class_accuracy"] is not None:
        real = f" (real held-out ones: {result['class_accuracy_real']:.1%})" if "class_accuracy_real" in result else ""
        lines.append(
            f"judged     {result['class_accuracy']:.1%} of {result['judged_images']} generated images are the class "
            f"they were asked to be{real}"
        )
    lines.append(f"more       {format_command('sample', format_override('run', display_path(run)))}")
    return "\n".join(lines)
