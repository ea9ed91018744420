"""What a rank does before and after Trainer.fit: build the parts of the run, explain errors, write result.json."""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import lightning as L

from diffusion_lit.config.targets import build
from diffusion_lit.data.datamodule import ImageDataModule
from diffusion_lit.data.store import ImageStore
from diffusion_lit.distributed import collectives, consistency
from diffusion_lit.imaging.palettes import write_palette
from diffusion_lit.runs import checkpoints, run_dir
from diffusion_lit.runs.build import make_configured_sampler
from diffusion_lit.sampling.samplers import Sampler
from diffusion_lit.system.errors import CheckpointError, Exit, UserError
from diffusion_lit.system.memory import is_out_of_memory, suggest_smaller_batch
from diffusion_lit.training import build_run, run_result
from diffusion_lit.training.automatic_keys import resolve_strategy
from diffusion_lit.training.callbacks.non_finite_guard import last_checkpoint
from diffusion_lit.training.callbacks.sample_metrics import measure_class_accuracy
from diffusion_lit.training.captions_of_run import add_caption_settings, cache_embeddings
from diffusion_lit.training.checkpoint_files import required_bytes
from diffusion_lit.training.collective_sampling import continue_on_error
from diffusion_lit.training.loggers.run_logger import RunLogger, make_logger
from diffusion_lit.training.module import DiffusionModule
from diffusion_lit.training.run_summary import format_run_summary

log = logging.getLogger(__name__)


class RunParts(NamedTuple):
    """The objects with which a rank trains."""

    config: dict
    run: Path
    data: ImageDataModule
    module: DiffusionModule
    sampler: Sampler
    callbacks: build_run.RunCallbacks
    trainer: L.Trainer
    logger: RunLogger


def prepare_rank(config: dict, source, run: Path, resume_from: Path | None, overrides=()) -> RunParts | dict:
    """Return what this rank trains with, or result.json of a run that has no steps left.

    All ranks call this function together.

    Args:
        config: resolved configuration.
        source: data source, or None to make it from the configuration.
        run: the run folder.
        resume_from: checkpoint to resume from, or None.
        overrides: of the command line, on rank 0.
    """
    consistency.check_checkpoint_on_all_hosts(resume_from)
    data = build_run.load_data(config, source, run, resume_from)
    config = add_caption_settings(config, data) | {"max_steps": build_run.total_steps(config, len(data.train))}
    config |= {"strategy": resolve_strategy(config)}
    build_run.check_train_batches_limit(config, len(data.train))
    build_run.check_metric_images(config, len(data.train))
    result = run_result.existing_result(config, run, resume_from) if collectives.rank() == 0 else None
    if result := collectives.broadcast_from_rank_zero(result):
        return result
    return build_parts(config, data, run, resume_from, overrides)


@contextmanager
def explained_errors(parts: RunParts, resume_from: Path | None) -> Iterator[None]:
    """Raise UserError where `explain_error` knows what the user can do, and close the logger in any case."""
    with parts.logger:
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            if explained := explain_error(error, parts, resume_from):
                raise explained from None
            raise


def build_parts(config: dict, data: ImageDataModule, run: Path, resume_from: Path | None, overrides=()) -> RunParts:
    """Return module, callbacks and Trainer of this rank. Rank 0 also writes config.yaml and logs a summary.

    Raises:
        UserError: on every rank, if `init_from` does not fit (exit 4) or the disk has no
            room (exit 5) on one.
    """
    is_rank_zero = collectives.rank() == 0
    module = build_run.make_module(config)
    module.make_optimizer(module.net.parameters())  # refuses bad settings before the folder is a run
    cache_embeddings(module.condition, data, run)
    init_message = None
    if not resume_from:
        init_message = consistency.run_on_all_ranks_or_raise(lambda: build_run.initialize_weights(module, config))
    logger, sampler = make_logger(config["logger"], is_rank_zero), make_configured_sampler(config)
    callbacks = build_run.make_callbacks(config, run, sampler, logger)
    user_callbacks = [build(leaf) for leaf in config["callbacks"].values()]
    lightning_trainer = build_run.make_trainer(config, run, module.net, [*user_callbacks, *callbacks], logger)
    if is_rank_zero:
        run_dir.record_start(run, config, overrides)
        if isinstance(data.train, ImageStore):
            write_palette(run, data.train.images)
        log.info(format_run_summary(config, data, module, run, resume_from))
        if init_message:
            log.info(init_message)
    room = required_bytes(module, config)
    consistency.run_on_all_ranks_or_raise(lambda: is_rank_zero and checkpoints.require_disk_space(run, room))
    return RunParts(config, run, data, module, sampler, callbacks, lightning_trainer, logger)


def explain_error(error: Exception, parts: RunParts, resume_from: Path | None) -> UserError | None:
    """Return what a user can do about memory that ran out (exit 75) or a checkpoint of another network (exit 4)."""
    if is_out_of_memory(error):
        where = f"out of memory after step {parts.trainer.global_step}; {last_checkpoint(parts.run)}, resume it"
        hint = suggest_smaller_batch(parts.config, collectives.world_size())
        return UserError(Exit.INTERRUPTED, f"{where}: {hint}")
    if "loading state_dict" in str(error):
        details = "\n".join(line.strip() for line in str(error).splitlines()[1:4])
        message = f"{resume_from} belongs to another network than `model` describes:\n{details}"
        return CheckpointError(message)
    return None


def finish_run(parts: RunParts) -> dict:
    """Draw a missing preview, measure class accuracy and write result.json; return the result."""
    config, run, module, step = parts.config, parts.run, parts.module, parts.trainer.global_step
    module.to(parts.trainer.strategy.root_device)  # Lightning moves it to the CPU at the end
    if parts.callbacks.stop.ended_by is None:
        parts.callbacks.previews.step = step
        parts.callbacks.previews.draw_missing(module)
    result = run_result.build_result(config, parts.callbacks, step)
    is_rank_zero = collectives.rank() == 0
    if result["status"] != "interrupted":
        if is_rank_zero:  # if the run is killed now, `resume` measures
            run_dir.write_result(run, result | {"status": "unfinished", "stopped_by": None})
        with continue_on_error("measuring class accuracy"):
            result |= measure_class_accuracy(config, parts.data, module, parts.sampler)
    if is_rank_zero:
        run_dir.write_result(run, result)
    parts.logger.log_result(result)
    parts.logger.finish(result["exit_code"])
    log.info(run_result.format_farewell(result, run))
    return result


def fast_dev_run(config: dict, source) -> None:
    """Train and validate for `trainer.fast_dev_run` batches on one device, without a run folder."""
    config = config | {"strategy": config["strategy"] | {"name": "single", "devices": 1}}
    with tempfile.TemporaryDirectory() as scratch:
        data = build_run.load_data(config, source, Path(scratch))
        config = add_caption_settings(config, data) | {"max_steps": build_run.total_steps(config, len(data.train))}
        config |= {"strategy": resolve_strategy(config)}
        module = build_run.make_module(config)
        callbacks = [build(leaf) for leaf in config["callbacks"].values()]
        lightning_trainer = build_run.make_trainer(config, Path(scratch), module.net, callbacks)
        lightning_trainer.fit(module, data, weights_only=True)
    metrics = lightning_trainer.callback_metrics
    names = [name for name in ("train/loss", "val/loss", "val/error") if name in metrics]
    values = " | ".join(f"{name} {metrics[name]:.4f}" for name in names)
    log.info("fast_dev_run: %d step(s) | %s. No files are left.", lightning_trainer.global_step, values)
