"""The parts of a training run, made from its configuration: data, module, callbacks, Trainer."""

import logging
import math
import socket
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import OmegaConf
from torch import nn

from diffusion_lit.config.compose import build_source
from diffusion_lit.data.datamodule import ImageDataModule, datamodule_from_config
from diffusion_lit.diffusion.seeds import derive_seed
from diffusion_lit.distributed import collectives, consistency, process_group
from diffusion_lit.runs import posthoc_ema, warm_start
from diffusion_lit.runs.build import make_codec, make_condition, make_diffusion, make_ema_decay, make_network
from diffusion_lit.sampling.samplers import Sampler
from diffusion_lit.system.errors import Exit, UserError
from diffusion_lit.training.callbacks.ema_snapshots import EmaSnapshots
from diffusion_lit.training.callbacks.metrics_log import MetricsLog
from diffusion_lit.training.callbacks.non_finite import NonFiniteGuard
from diffusion_lit.training.callbacks.run_checkpoints import RunCheckpoints
from diffusion_lit.training.callbacks.sample_metrics import SampleMetrics
from diffusion_lit.training.callbacks.sample_previews import Previews
from diffusion_lit.training.callbacks.signals import GracefulStop
from diffusion_lit.training.callbacks.step import Clock, Milestones
from diffusion_lit.training.callbacks.validate import NEVER, Validation
from diffusion_lit.training.checkpoint_files import CheckpointFiles
from diffusion_lit.training.loggers.run_logger import RunLogger
from diffusion_lit.training.module import DiffusionModule
from diffusion_lit.training.optimizers import learning_rate_factor, make_optimizer
from diffusion_lit.training.strategies import trainer_arguments

log = logging.getLogger(__name__)


def load_data(config: dict, source, run: Path) -> ImageDataModule:
    """Return the images, decoded once: several processes of one machine share a file instead of an array each.

    Each machine reads its own copy.

    Args:
        source: of the images, or None to make it from the configuration.

    Raises:
        UserError: exit 2 if the global batch cannot be shared out evenly, exit 3 if copies differ; on every rank, what
            went wrong on one.
    """
    strategy = config["strategy"]
    world = collectives.world_size()
    require_even_shares(config, process_group.count_local_devices(strategy) if strategy["name"] == "dp" else world)
    own = config["data"]
    if world > 1 and not own["cache_dir"]:  # a file that one machine has mapped is never replaced by another's
        own = own | {"cache_dir": str(run / "cache" / socket.gethostname())}

    def read() -> ImageDataModule:
        share = config["global_batch_size"] // (strategy["accumulate"] * world)
        accepts = "data" in config["accept"]
        data = datamodule_from_config(
            source or build_source(config["data"]), own, config["seed"], share, accept_changed_data=accepts
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


def total_steps(config: dict, images: int) -> int:
    """Optimizer steps of the run: `max_steps`, or as many as `max_epochs` passes over the images take."""
    epochs = config["max_epochs"]
    return config["max_steps"] if epochs is None else math.ceil(epochs * images / config["global_batch_size"])


def check_limits(config: dict, images: int) -> None:
    """Raise UserError (exit 2) if an epoch of `trainer.limit_train_batches` would end in the middle of a step."""
    limit, accumulate = config["trainer"].get("limit_train_batches"), config["strategy"]["accumulate"]
    if limit in (None, 1.0):
        return
    batches = limit if isinstance(limit, int) else int(limit * steps_per_pass(images, config) * accumulate)
    if batches < accumulate or batches % accumulate:
        raise UserError(
            Exit.CONFIG,
            f"trainer.limit_train_batches={limit}: an epoch of {batches} batches must be a multiple of "
            f"strategy.accumulate={accumulate}. Choose another limit.",
        )


def steps_per_pass(images: int, config: dict) -> int:
    """Return the optimizer steps of one pass over the images, the last one filled up."""
    return math.ceil(images / config["global_batch_size"])


def make_module(config: dict) -> DiffusionModule:
    """Return the module of a run with freshly initialized weights, the same for the same seed."""
    torch.manual_seed(derive_seed(config["seed"], "weights"))
    strategy, codec = config["strategy"], make_codec(config)
    # a fused kernel unscales fp16 gradients inside its step, after our clipping
    fused = strategy["precision"] != "16-mixed"
    return DiffusionModule(
        make_network(config),
        make_diffusion(config),
        shape=codec.image_shape,
        class_names=config["data"]["class_names"],
        codec=codec,
        condition=make_condition(config),
        ema=make_ema_decay(config),
        optimizer=partial(make_optimizer, leaf=config["optimizer"], fused=fused),
        lr_schedule=learning_rate_factor(config["lr_schedule"], config["max_steps"]),
        label_dropout=config["label_dropout"],
        seed=config["seed"],
        global_batch_size=config["global_batch_size"],
        ema_lengths=posthoc_ema.LENGTHS if config["ema_snapshot_every"] else (),
        channels_last=strategy["channels_last"],
        compile_net=strategy["compile"],
        config_text=OmegaConf.to_yaml(OmegaConf.create(config)),
    )


def begin(module: DiffusionModule, config: dict) -> str | None:
    """The weights that a new run starts from, in the network and in its average; see `load_initial_weights`."""
    with consistency.local_rank_zero_first():  # it may download them
        told = warm_start.load_initial_weights(module.net, config, log.warning)
    if told and module.ema is not module.net:
        module.ema.load_state_dict(module.net.state_dict())
    return told


@dataclass(frozen=True)
class RunCallbacks:
    """The callbacks of a run, in the order in which they act after a step.

    A user's own come first, so that a checkpoint holds their state after the step. Then: has the step gone wrong, what
    does it measure, is that written, is it saved, what does it look like, and was there a signal. Whatever a step
    promised exists when its checkpoint does; a preview is drawn after the save, because it takes long.
    """

    guard: NonFiniteGuard
    validation: Validation
    samples: SampleMetrics
    snapshots: EmaSnapshots
    metrics: MetricsLog
    checkpoints: RunCheckpoints
    previews: Previews
    stop: GracefulStop

    def in_order(self) -> list[Callback]:
        return [getattr(self, field.name) for field in fields(self)]


def make_callbacks(config: dict, run: Path, sampler: Sampler, logger: RunLogger) -> RunCallbacks:
    """Return the callbacks that keep the record of a run and its promises."""
    milestones, clock = Milestones(config), Clock()
    guard = NonFiniteGuard(run, config, milestones, clock)
    validation = Validation(milestones)
    samples = SampleMetrics(config, milestones, sampler)
    metrics = MetricsLog(run, config, milestones, clock, guard, validation, samples, logger)
    checkpoints = RunCheckpoints(run, config, milestones, metrics)
    stop = GracefulStop(checkpoints, clock)
    previews = Previews(run, config, milestones, sampler, metrics, stop)
    snapshots = EmaSnapshots(run, config["ema_snapshot_every"])
    return RunCallbacks(guard, validation, samples, snapshots, metrics, checkpoints, previews, stop)


def make_trainer(
    config: dict, run: Path, net: nn.Module, callbacks: Sequence[Callback], logger: Logger | None = None, **arguments
) -> L.Trainer:
    """Return Lightning's Trainer with the `trainer` group; steps, devices and checkpoints are the run's."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.profilers").setLevel(logging.INFO)  # the table of trainer.profiler
    logging.getLogger("lightning.pytorch").handlers.clear()  # Hydra's root logger has them
    logging.getLogger("lightning.pytorch").propagate = True
    warnings.filterwarnings("ignore", module="lightning")
    strategy = config["strategy"]
    devices = trainer_arguments(strategy, net)
    own = {
        "max_steps": config["max_steps"],
        "max_epochs": -1,
        "plugins": [CheckpointFiles(), *devices.pop("plugins", [])],
        "precision": strategy["precision"],
        "accumulate_grad_batches": strategy["accumulate"],
        "callbacks": list(callbacks),
        "default_root_dir": run,
        "logger": logger or False,
        "val_check_interval": NEVER,  # the callback Validation says when
        "check_val_every_n_epoch": None,
        "num_sanity_val_steps": 0,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
    }
    try:
        return L.Trainer(**devices, **config["trainer"] | own | arguments)
    except MisconfigurationException as error:  # no such accelerator, no bf16 on it...
        raise UserError(Exit.CONFIG, f"strategy: {error}") from None
