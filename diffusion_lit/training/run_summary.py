"""The lines that a run logs before its first step."""

from pathlib import Path

import torch
from torch import nn

from diffusion_lit.config.network_size import describe_levels, find_size_faults
from diffusion_lit.data.datamodule import ImageDataModule
from diffusion_lit.data.sources.listing import format_left_out
from diffusion_lit.data.sources.table_labels import collect_notes
from diffusion_lit.distributed import collectives
from diffusion_lit.imaging.rows import choose_rows, describe_rows
from diffusion_lit.imaging.sizes import format_size
from diffusion_lit.runs.run_dir import display_path
from diffusion_lit.sampling.previews import ROWS
from diffusion_lit.training.checkpoint_files import checkpoint_bytes, snapshot_bytes
from diffusion_lit.training.module import DiffusionModule
from diffusion_lit.training.optimizers import warmup_steps


def format_run_summary(
    config: dict, data: ImageDataModule, module: DiffusionModule, run: Path, resume_from: Path | None
) -> str:
    """Return the lines that a run logs before its first step: data, network, length, disk space, warnings."""
    data_config, class_names, max_steps = config["data"], config["data"]["class_names"], config["max_steps"]
    parameters = sum(p.numel() for p in module.net.parameters()) / 1e6
    images, batch = len(data.train), config["global_batch_size"]
    classes = f"{len(class_names)} classes" if class_names else "no classes"
    if config["text_encoder"]:
        classes = f"{classes}, " * bool(class_names) + f"{len(data.captions):,} captions"
    validation = f"{len(data.val):,} for validation" if data.val else "none for validation"
    weighting = config["weighting"]["_target_"].rpartition(".")[2]
    lines = [
        f"run        {display_path(run)}",
        f"data       {images:,} images {format_size(data_config['image_size'])}x{data_config['channels']}, "
        f"{classes}, {validation}",
        f"network    {type(module.net).__name__}, {parameters:.2f} M parameters, "
        f"{_mode_text(config['strategy'])} on {_device_text(config)}",
        f"diffusion  {module.diffusion.process.title}, {config['diffusion']['prediction_type']}, weighting {weighting}",
        f"training   {max_steps:,} steps of {batch} images = {max_steps * batch / images:,.1f} epochs",
        f"on disk    {checkpoint_bytes(module) / 2**20:,.1f} MiB per checkpoint, "
        f"{config['keep_checkpoints']} and the best are kept",
    ]
    if levels := describe_levels(config["model"]):
        lines.insert(3, f"           {levels}")
    if module.tracked_emas:
        lines.append(f"           and {snapshot_bytes(module, config) / 2**20:,.1f} MiB of snapshots for ema_length")
    lines += [f"note       {note}" for note in collect_notes(data.source)]
    if describe_rows(len(class_names), ROWS) and not config["text_encoder"]:
        chosen = [class_names[k] for k in choose_rows(len(class_names), ROWS)]
        lines.append(f"previews   of {ROWS} of {len(class_names)} classes, evenly chosen: {', '.join(chosen)}")
    lines += [f"note       {fault}" for fault in find_size_faults(config["model"], images)]
    if left_out := getattr(data.source, "left_out", {}):
        lines.append(f"left out   {'; '.join(format_left_out(left_out))}")
    if images < batch:
        lines.append(f"note       {images} images are fewer than global_batch_size={batch}: a batch repeats some")
    warmup = warmup_steps(config["lr_schedule"], max_steps)
    if warmup > max(max_steps, 100):
        lines.append(
            f"warning    the warm-up of {warmup:,} steps is longer than the run, which never reaches optimizer.lr. "
            "Set lr_schedule.warmup_fraction=0.05 for a share of any run."
        )
    if module.diffusion.weight[-1] == 0:
        lines.append(
            f"warning    the weighting is 0 at the noisiest timestep ({len(module.diffusion.weight) - 1}), where "
            "sampling starts: it is never trained. Use weighting=truncated_snr or snr_plus_one."
        )
    lines += find_batch_norm_faults(config, module.net)
    if resume_from:
        lines.append(f"resuming   {resume_from.name}")
    return "\n".join(lines)


def find_batch_norm_faults(config: dict, net: nn.Module) -> list[str]:
    """Return a line if batch normalization makes the division of a batch change the training."""
    is_synchronized = config["trainer"].get("sync_batchnorm", False)
    parts = config["strategy"]["accumulate"] * (1 if is_synchronized else collectives.world_size())
    norms = [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if parts == 1 or not norms:
        return []
    return [
        f"note       batch normalization sees {config['global_batch_size'] // parts} images at a time, in {parts} "
        "parts of a batch: another strategy.accumulate or number of processes trains something else. "
        "trainer.sync_batchnorm=true joins processes on GPUs; group normalization has no such limit."
    ]


def _mode_text(strategy: dict) -> str:
    """Return precision, memory format and compilation of a `strategy` group."""
    compiled = {False: "", True: ", compiled"}.get(strategy["compile"], f", compiled ({strategy['compile']})")
    return strategy["precision"] + ", channels_last" * (strategy["channels_last"] is True) + compiled


def _device_text(config: dict) -> str:
    is_on_gpu = torch.cuda.is_available() and config["strategy"]["accelerator"] != "cpu"
    device = torch.cuda.get_device_name() if is_on_gpu else f"{torch.get_num_threads()} CPU threads"
    world = collectives.world_size()
    return f"{device} in each of {world} processes" if world > 1 else device
