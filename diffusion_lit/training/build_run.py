"""Build the parts of a training run from its configuration: data, module, callbacks, Trainer."""

import logging
import math
import socket
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import OmegaConf
from torch import nn

from diffusion_lit.config.compose import build_source
from diffusion_lit.config.constraints import SYNC_BATCHNORM_FAULT
from diffusion_lit.data.datamodule import ImageDataModule, datamodule_from_config
from diffusion_lit.data.validation_split import KnownImages
from diffusion_lit.diffusion.seeds import derive_seed
from diffusion_lit.distributed import collectives, consistency, process_group
from diffusion_lit.evaluation.metrics import MIN_IMAGES
from diffusion_lit.runs import posthoc_ema, warm_start
from diffusion_lit.runs.build import make_codec, make_condition, make_diffusion, make_ema_decay, make_network
from diffusion_lit.runs.run_images import read_data_state
from diffusion_lit.runs.stored_config import GUIDANCE_KEYS
from diffusion_lit.sampling.samplers import Sampler
from diffusion_lit.system.errors import ConfigError, DataError
from diffusion_lit.training.callbacks.ema_snapshots import EmaSnapshots
from diffusion_lit.training.callbacks.graceful_stop import GracefulStop
from diffusion_lit.training.callbacks.metrics_log import MetricsLog
from diffusion_lit.training.callbacks.non_finite_guard import NonFiniteGuard
from diffusion_lit.training.callbacks.run_checkpoints import RunCheckpoints
from diffusion_lit.training.callbacks.sample_metrics import SampleMetrics
from diffusion_lit.training.callbacks.sample_previews import SamplePreviews
from diffusion_lit.training.callbacks.step_callback import Clock, Milestones
from diffusion_lit.training.callbacks.step_validation import NEVER, StepValidation
from diffusion_lit.training.checkpoint_files import CheckpointFiles
from diffusion_lit.training.loggers.run_logger import RunLogger
from diffusion_lit.training.module import DiffusionModule
from diffusion_lit.training.optimizers import learning_rate_factor, make_optimizer
from diffusion_lit.training.strategies import device_arguments
from diffusion_lit.training.student_module import StudentModule

log = logging.getLogger(__name__)


def load_data(config: dict, source, run: Path, resume_from: Path | None = None) -> ImageDataModule:
    """Return the images of a run, decoded once per machine: its processes share a cache file.

    Args:
        config: configuration of the run.
        source: data source, or None to make it from the configuration.
        run: the run folder, which holds the cache unless `data.cache_dir` is set.
        resume_from: checkpoint whose images keep their splits.

    Raises:
        UserError: exit 2 if the global batch cannot be divided evenly, exit 3 if the images
            of the machines differ; an error of one rank is raised on all.
    """
    strategy, world = config["strategy"], collectives.world_size()
    check_even_shares(config, process_group.count_local_devices(strategy) if strategy["name"] == "dp" else world)
    data_config = config["data"]
    if world > 1 and not data_config["cache_dir"]:  # per machine, so that none replaces a file another has mapped
        data_config = data_config | {"cache_dir": str(run / "cache" / socket.gethostname())}

    def read() -> ImageDataModule:
        data = datamodule_from_config(
            source or build_source(config["data"]),
            data_config,
            config["seed"],
            batch_size=config["global_batch_size"] // (strategy["accumulate"] * world),
            accept_changed_data="data" in config["accept"],
            known=KnownImages.from_state(read_data_state(resume_from)),
        )
        data.setup()
        return data

    with consistency.local_rank_zero_first():
        data, error = consistency.capture_user_error(read)
    consistency.raise_on_all_ranks(error)
    consistency.check_identical_data(data)
    return data


def check_even_shares(config: dict, devices: int) -> None:
    """Raise UserError (exit 2) unless the global batch divides evenly among devices and micro-batches."""
    accumulate = config["strategy"]["accumulate"]
    if config["global_batch_size"] % (devices * accumulate):
        raise ConfigError(
            f"global_batch_size={config['global_batch_size']} must be a multiple of {devices * accumulate}, "
            f"devices x strategy.accumulate={accumulate}"
        )


def total_steps(config: dict, images: int) -> int:
    """Return the optimizer steps of the run: `max_steps`, or those of `max_epochs` passes over the images."""
    epochs = config["max_epochs"]
    return config["max_steps"] if epochs is None else math.ceil(epochs * images / config["global_batch_size"])


def check_train_batches_limit(config: dict, images: int) -> None:
    """Raise UserError (exit 2) if an epoch of `trainer.limit_train_batches` would end in the middle of a step."""
    limit, accumulate = config["trainer"].get("limit_train_batches"), config["strategy"]["accumulate"]
    if limit in (None, 1.0):
        return
    epoch = math.ceil(images / config["global_batch_size"]) * accumulate
    batches = limit if isinstance(limit, int) else int(limit * epoch)
    if batches < accumulate or batches % accumulate:
        raise ConfigError(
            f"trainer.limit_train_batches={limit}: an epoch of {batches} batches must be a multiple of "
            f"strategy.accumulate={accumulate}. Choose another limit."
        )


def check_metric_images(config: dict, images: int) -> None:
    """Raise DataError if there are too few training images for the metrics of `metrics_every`."""
    if config["metrics_every"] and config["metrics"] and images < MIN_IMAGES:
        raise DataError(
            f"metrics_every={config['metrics_every']}: the metrics need {MIN_IMAGES} training images or more, and "
            f"there are {images}. Set metrics_every=0."
        )


def make_module(config: dict) -> DiffusionModule:
    """Return the module of a run with new weights, the same for the same seed."""
    torch.manual_seed(derive_seed(config["seed"], "weights"))
    strategy, codec = config["strategy"], make_codec(config)
    # a fused kernel unscales fp16 gradients inside its step, after our clipping
    fused = strategy["precision"] != "16-mixed"
    return make_module_class(config)(
        make_network(config),
        make_diffusion(config),
        image_shape=codec.image_shape,
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
        channels_last=strategy["channels_last"] is True,  # not auto, which `resolve_strategy` replaces
        compile_net=strategy["compile"] if strategy["compile"] != "auto" else False,
        config_text=OmegaConf.to_yaml(OmegaConf.create(config)),
    )


def make_module_class(config: dict) -> Callable[..., DiffusionModule]:
    """Return the class of the module; with `distill` that of a student, with the arguments of its distillation."""
    settings = config.get("distill")
    if not settings:
        return DiffusionModule
    return partial(
        StudentModule,
        teacher_steps=settings["teacher_steps"],
        stages=settings["stages"],
        max_steps=config["max_steps"],
        guidance={key: settings[key] for key in GUIDANCE_KEYS if settings[key] is not None},
        clip_x0=config["sampler"]["clip_x0"],
    )


def initialize_weights(module: DiffusionModule, config: dict) -> str | None:
    """Load the weights of `init_from` or a teacher into network and EMA; return the message on what fits."""
    with consistency.local_rank_zero_first():  # it may download them
        message = warm_start.load_initial_weights(module.net, config, log.warning)
    if message and module.ema is not module.net:
        module.ema.load_state_dict(module.net.state_dict())
    return message


class RunCallbacks(NamedTuple):
    """The callbacks of a run, in the order in which they act after a step.

    Callbacks of the user come first, so that a checkpoint holds their state after the step.
    Then the step is checked, measured and logged, and then saved, so that everything due at
    a step exists when its checkpoint does. Previews take long, so they follow the
    checkpoint. A signal is handled last.

    To add a callback, add a field here, at its place in this order, and build it in
    `make_callbacks`, where it comes after the callbacks that it takes.
    """

    guard: NonFiniteGuard
    validation: StepValidation
    sample_metrics: SampleMetrics
    ema_snapshots: EmaSnapshots
    metrics: MetricsLog
    checkpoints: RunCheckpoints
    previews: SamplePreviews
    stop: GracefulStop


def make_callbacks(config: dict, run: Path, sampler: Sampler, logger: RunLogger) -> RunCallbacks:
    """Return the callbacks that every run has; `fast_dev_run` and `plan=true` have none of them.

    The callbacks of the user are added in `train_rank.build_parts`.
    """
    shared = run, config, Milestones(config), Clock()
    guard, validation = NonFiniteGuard(*shared), StepValidation(*shared)
    samples = SampleMetrics(*shared, sampler=sampler)
    metrics = MetricsLog(*shared, guard=guard, validation=validation, samples=samples, logger=logger)
    checkpoints = RunCheckpoints(*shared, metrics=metrics)
    stop = GracefulStop(*shared, checkpoints=checkpoints)
    previews = SamplePreviews(*shared, sampler=sampler, metrics=metrics, stop=stop)
    return RunCallbacks(guard, validation, samples, EmaSnapshots(*shared), metrics, checkpoints, previews, stop)


def make_trainer(
    config: dict, run: Path, net: nn.Module, callbacks: Sequence[Callback], logger: Logger | None = None
) -> L.Trainer:
    """Return Lightning's Trainer with the keys of the `trainer` group.

    Length, devices, precision, checkpoints and validation are set from the keys of the run
    and cannot be overridden.

    Raises:
        UserError: exit 2 if Lightning refuses a combination, such as bf16 on a device
            without it, or for synchronized batch norms of processes on a CPU.
    """
    if config["trainer"].get("sync_batchnorm") and collectives.world_size() > 1 and not torch.cuda.is_available():
        raise ConfigError(SYNC_BATCHNORM_FAULT)
    lightning_log = logging.getLogger("lightning.pytorch")
    lightning_log.setLevel(logging.WARNING)
    lightning_log.handlers.clear()  # Hydra's root logger prints
    lightning_log.propagate = True
    logging.getLogger("lightning.pytorch.profilers").setLevel(logging.INFO)  # the table of trainer.profiler
    warnings.filterwarnings("ignore", module="lightning")
    strategy = config["strategy"]
    devices = device_arguments(strategy, net)
    settings = {
        "max_steps": config["max_steps"],
        "max_epochs": -1,
        "plugins": [CheckpointFiles(), *devices.pop("plugins", [])],
        "precision": strategy["precision"],
        "accumulate_grad_batches": strategy["accumulate"],
        "callbacks": list(callbacks),
        "default_root_dir": run,
        "logger": logger or False,
        "val_check_interval": NEVER,  # the callback StepValidation starts it
        "check_val_every_n_epoch": None,
        "num_sanity_val_steps": 0,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
    }
    try:
        return L.Trainer(**devices, **config["trainer"] | settings)
    except MisconfigurationException as error:
        raise ConfigError(f"strategy: {error}") from None
