"""The parts of a training run, put together from its configuration: module, trainer, opening and closing words."""

import logging
import math
import shlex
import socket
import warnings
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import OmegaConf
from torch import nn

from diffusion_lit.config.compose import source_of
from diffusion_lit.config.overrides import as_word
from diffusion_lit.data.datamodule import ImageDataModule
from diffusion_lit.diffusion.seeds import fold
from diffusion_lit.distributed import collectives, consistency, process_group
from diffusion_lit.runs import checkpoints, warm_start
from diffusion_lit.runs.build import make_decay, make_diffusion, make_network
from diffusion_lit.runs.run_dir import shown
from diffusion_lit.system.errors import SAVING, Exit, UserError
from diffusion_lit.training.checkpoint_io import CheckpointFiles
from diffusion_lit.training.module import DiffusionModule, checkpoint_bytes, snapshot_bytes
from diffusion_lit.training.optimizer import warmup_steps
from diffusion_lit.training.recorder import Recorder
from diffusion_lit.training.strategies import trainer_arguments

log = logging.getLogger(__name__)


def load_data(config: dict, source, run: Path) -> ImageDataModule:
    """The pictures, decoded once: several processes of one machine share a file instead of an array each.

    Each machine reads its own copy.

    Args:
        source: of the pictures, or None to make it of the configuration.
    Raises:
        UserError: exit 2 if the global batch cannot be shared out evenly, exit 3 if copies differ; on every rank, what
            went wrong on one.
    """
    strategy = config["strategy"]
    world = collectives.world_size()
    require_even_shares(config, process_group.devices_here(strategy) if strategy["name"] == "dp" else world)
    own = config["data"]
    if world > 1 and not own["cache_dir"]:  # a file that one machine has mapped is never replaced by another's
        own = own | {"cache_dir": str(run / "cache" / socket.gethostname())}

    def read() -> ImageDataModule:
        data = ImageDataModule(
            source or source_of(config["data"]),
            own,
            config["seed"],
            micro_batch_size=config["global_batch_size"] // (strategy["accumulate"] * world),
            accept_changed_data="data" in config["accept"],
        )
        data.setup()
        return data

    with consistency.local_rank_zero_first():
        data, fault = consistency.capture_user_error(read)
    consistency.raise_on_all_ranks(fault)
    consistency.check_identical_data(data)
    return data


def require_even_shares(config: dict, devices: int) -> None:
    """Raises UserError (exit 2) unless the global batch can be shared out evenly, in whole images."""
    accumulate = config["strategy"]["accumulate"]
    if config["global_batch_size"] % (devices * accumulate):
        raise UserError(
            Exit.CONFIG,
            f"global_batch_size={config['global_batch_size']} must be a multiple of {devices * accumulate}, "
            f"devices x strategy.accumulate={accumulate}",
        )


def length_in_steps(config: dict, images: int) -> int:
    """Optimizer steps of the run: `max_steps`, or as many as `max_epochs` passes over the images take."""
    epochs = config["max_epochs"]
    return config["max_steps"] if epochs is None else math.ceil(epochs * images / config["global_batch_size"])


def make_module(config: dict) -> DiffusionModule:
    """The module with freshly initialised weights, the same for the same seed."""
    torch.manual_seed(fold(config["seed"], "weights"))
    text = OmegaConf.to_yaml(OmegaConf.create(config))
    return DiffusionModule(make_network(config), make_diffusion(config), make_decay(config), config, text)


def begin(module: DiffusionModule, config: dict) -> str | None:
    """The weights that a new run starts from, in the network and in its average; see `warm_start.fill`."""
    with consistency.local_rank_zero_first():  # it may download them
        told = warm_start.fill(module.net, config, log.warning)
    if told and module.ema is not module.net:
        module.ema.load_state_dict(module.net.state_dict())
    return told


def make_trainer(config: dict, run: Path, net: nn.Module, *callbacks: Callback) -> L.Trainer:
    """A Trainer that leaves data order, validation, logging and checkpoint times to us."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch").handlers.clear()  # Hydra's root logger has them already
    warnings.filterwarnings("ignore", module="lightning")
    strategy = config["strategy"]
    arguments = trainer_arguments(strategy, net)
    try:
        return L.Trainer(
            max_steps=config["max_steps"],
            **arguments | {"plugins": [CheckpointFiles(), *arguments.get("plugins", [])]},
            precision=strategy["precision"],
            accumulate_grad_batches=strategy["accumulate"],
            callbacks=list(callbacks),
            default_root_dir=run,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
    except MisconfigurationException as error:  # no such accelerator, no bf16 on it...
        raise UserError(Exit.CONFIG, f"strategy: {error}") from None


def summary(config: dict, data: ImageDataModule, module: DiffusionModule, run: Path, start: Path | None) -> str:
    """What is about to be trained, on what, and what a checkpoint costs."""
    names, diffusion = config["data"]["class_names"], config["diffusion"]
    parameters = sum(p.numel() for p in module.net.parameters())
    n, batch = len(data.train), config["global_batch_size"]
    size = config["data"]["image_size"]
    classes = f"{len(names)} classes" if names else "no classes"
    held_out = f"{len(data.val):,} held out" if data.val else "none held out"
    on_gpu = torch.cuda.is_available() and config["strategy"]["accelerator"] != "cpu"
    device = torch.cuda.get_device_name() if on_gpu else f"{torch.get_num_threads()} CPU threads"
    if collectives.world_size() > 1:
        device += f" in each of {collectives.world_size()} processes"
    lines = [
        f"run        {shown(run)}",
        f"data       {n:,} pictures {size}x{size}x{config['data']['channels']}, {classes}; {held_out}",
        f"network    {type(module.net).__name__}, {parameters / 1e6:.2f} M parameters, "
        f"{config['strategy']['precision']} on {device}",
        f"diffusion  {module.diffusion.table.title}, "
        f"{diffusion['prediction_type']}, weighting {config['weighting']['_target_'].rpartition('.')[2]}",
        f"training   {config['max_steps']:,} steps of {batch} images = {config['max_steps'] * batch / n:,.1f} epochs",
        f"on disk    {checkpoint_bytes(module) / 2**20:,.1f} MiB a checkpoint, "
        f"{config['keep_checkpoints']} and the best are kept",
    ]
    if module.averages:
        lines.append(f"           and {snapshot_bytes(module) / 2**20:,.1f} MiB of snapshots for ema_length")
    if note := getattr(data.source, "note", None):
        lines.append(f"note       {note}")
    if n < batch:
        lines.append(f"note       fewer pictures ({n}) than a batch ({batch}): a batch holds some of them twice")
    if (warm := warmup_steps(config["optimizer"], config["max_steps"])) > max(config["max_steps"], 100):
        lines.append(
            f"warning    the learning rate rises for {warm:,} steps, longer than the run is, and never reaches "
            "optimizer.lr; optimizer.warmup_fraction=0.05 is a share of any run"
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


def finish(config: dict, module: DiffusionModule, recorder: Recorder, step: int) -> dict:
    """result.json as training leaves it: how it ended, how fast it was, where the pictures are."""
    ended_by = recorder.ended_by
    if ended_by is None:
        recorder.step = step
        recorder.draw_missing(module)
    grid = Path("samples", f"step-{step:08d}.png")
    speed = step * config["global_batch_size"] / recorder.seconds if recorder.seconds else None
    return {
        "status": "finished" if ended_by is None else "interrupted",
        "exit_code": exit_code_of(ended_by),
        "steps": step,
        "seconds": recorder.seconds,
        "images_per_second": speed,
        "val_loss": recorder.val_loss,
        "val_error": recorder.val_error,
        "class_accuracy": None,
        "checkpoint": str(checkpoints.path_of(Path(), step)),
        "grid": str(grid) if (recorder.run / grid).exists() else None,
    }


def exit_code_of(ended_by: int | None) -> int:
    """0, or what a signal ends with; SIGUSR1 ends a run that is queued again."""
    if ended_by is None:
        return 0
    return int(Exit.INTERRUPTED) if ended_by in SAVING else 128 + ended_by


def farewell(result: dict, run: Path) -> str:
    """The last lines of a run: where everything is and how to go on."""
    if result["status"] != "finished":
        word = shlex.quote(as_word("resume", shown(run)))
        return f"stopped at step {result['steps']}, saved; go on with: python -m diffusion_lit.train {word}"
    lines = [f"run        {shown(run)}"]
    if result["grid"]:
        lines.append(f"samples    {shown(run / result['grid'])}")
    if result["class_accuracy"] is not None:
        real = f" (real held-out ones: {result['class_accuracy_real']:.1%})" if "class_accuracy_real" in result else ""
        lines.append(
            f"judged     {result['class_accuracy']:.1%} of {result['judged_images']} generated images are the class "
            f"they were asked to be{real}"
        )
    lines.append(f"more       python -m diffusion_lit.sample {shlex.quote(as_word('run', shown(run)))}")
    return "\n".join(lines)
