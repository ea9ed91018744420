"""One training run on all ranks, from its configuration to result.json."""

import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from diffusion_lit.config.targets import build, trust
from diffusion_lit.distributed import collectives, process_group
from diffusion_lit.runs import checkpoints, run_dir
from diffusion_lit.system.errors import Exit, UserError

log = logging.getLogger(__name__)


def fit(config: dict, source, run: Path, overrides: list[str]) -> dict:
    """Train on all ranks and return result.json; for rank 0, which alone writes and logs. Imports torch late."""
    start = (
        checkpoints.select_checkpoint(run, warn=log.warning)
        if config["resume"] and checkpoints.list_steps(run)
        else None
    )
    checkpoints.remove_partial_files(run)
    if start:
        checkpoints.rename_corrupt(run, start)
    if config["resume"] and not start:
        log.info("%s has no checkpoint yet: starting from step 0", run_dir.display_path(run))
    is_launched = collectives.launcher_env("WORLD_SIZE")  # then the other ranks wait already
    if not is_launched and config["max_epochs"] is None and (done := finished_result(config, run, start)):
        return done
    try:
        with process_group.launch_ranks(config["strategy"]):
            config, run, start = collectives.broadcast_from_rank_zero((config, run, start))
            parts = prepare(config, source, run, start, overrides)
            if parts.done:
                return parts.done
            with parts.logger, explained_errors(parts):
                parts.trainer.fit(parts.module, parts.data, ckpt_path=start, weights_only=True)
                return finish(parts)
    finally:
        shutil.rmtree(run / "cache", ignore_errors=True)  # what processes shared; see `load_data`


def follow() -> None:
    """Train on a rank other than 0, with the configuration that rank 0 sends."""
    with process_group.follow_rank_zero():
        config, run, start = collectives.broadcast_from_rank_zero(None)
        trust(config)  # rank 0 would not have come here otherwise
        try:
            parts = prepare(config, None, run, start)
            if not parts.done:
                with parts.logger, explained_errors(parts):
                    parts.trainer.fit(parts.module, parts.data, ckpt_path=start, weights_only=True)
                    finish(parts)
        finally:
            if not (run / ".lock").exists():  # on another host, which does not see the run folder
                shutil.rmtree(run / "cache", ignore_errors=True)
                with suppress(OSError):
                    run.rmdir()


def finished_result(config: dict, run: Path, start: Path | None) -> dict:
    """Return result.json of a run that is complete already, or has stopped early; else an empty dict."""
    done = run_dir.read_result(run)
    is_stopped = done.get("status") == "stopped early" and bool(config["callbacks"])
    is_complete = done.get("status") == "finished" and done["steps"] >= config["max_steps"]
    if not start or not (is_complete or is_stopped):
        return {}
    length = "max_steps" if config["max_epochs"] is None else "max_epochs"
    if is_stopped:
        log.info("%s was stopped early by a callback at step %d; to train on, leave out callbacks", run, done["steps"])
    else:
        log.info("%s is already at step %d of %d; raise %s to go on", run, done["steps"], config["max_steps"], length)
    return done


def fast_dev_run(config: dict, source) -> None:
    """Train and validate for `trainer.fast_dev_run` batches on one device, without a run folder."""
    from diffusion_lit.training import trainer

    config = config | {"strategy": config["strategy"] | {"name": "single", "devices": 1}}
    with tempfile.TemporaryDirectory() as scratch:
        data = trainer.load_data(config, source, Path(scratch))
        config = config | {"max_steps": trainer.total_steps(config, len(data.train))}
        module = trainer.make_module(config)
        callbacks = [build(leaf) for leaf in config["callbacks"].values()]
        lightning_trainer = trainer.make_trainer(config, Path(scratch), module.net, callbacks)
        lightning_trainer.fit(module, data, weights_only=True)
    metrics = lightning_trainer.callback_metrics
    values = "  ".join(
        f"{name} {metrics[name]:.4f}" for name in ("train/loss", "val/loss", "val/error") if name in metrics
    )
    log.info("fast_dev_run: %d step(s)  %s; nothing is left behind", lightning_trainer.global_step, values)


class Parts(NamedTuple):
    """What a rank trains with. `done` is the result of a run that has nothing left to do, then all else is None."""

    done: dict
    config: dict | None = None
    run: Path | None = None
    start: Path | None = None
    data: object = None
    module: object = None
    sampler: object = None
    callbacks: object = None
    trainer: object = None
    logger: object = None


def prepare(config: dict, source, run: Path, start: Path | None, overrides: list[str] | None = None) -> Parts:
    """Return the data, module and Trainer of this rank; rank 0 also writes config.yaml and logs a summary."""
    from diffusion_lit.distributed import consistency
    from diffusion_lit.runs.build import make_configured_sampler
    from diffusion_lit.training import run_messages, trainer
    from diffusion_lit.training.loggers.run_logger import make_logger
    from diffusion_lit.training.module import checkpoint_bytes, snapshot_bytes

    is_first = collectives.rank() == 0
    consistency.check_checkpoint_on_all_hosts(start)
    data = trainer.load_data(config, source, run)
    config = config | {"max_steps": trainer.total_steps(config, len(data.train))}
    trainer.check_limits(config, len(data.train))
    if done := collectives.broadcast_from_rank_zero(finished_result(config, run, start) if is_first else None):
        return Parts(done)
    module = trainer.make_module(config)
    init_message = None if start else consistency.run_on_all_ranks_or_raise(lambda: trainer.begin(module, config))
    logger, sampler = make_logger(config["logger"], is_first), make_configured_sampler(config)
    callbacks = trainer.make_callbacks(config, run, sampler, logger)
    own = [build(leaf) for leaf in config["callbacks"].values()]
    lightning_trainer = trainer.make_trainer(config, run, module.net, [*own, *callbacks.in_order()], logger)
    if is_first:
        run_dir.record_start(run, config, overrides)
        log.info(run_messages.summary(config, data, module, run, start))
        if init_message:
            log.info(init_message)
    room = 3 * checkpoint_bytes(module) + snapshot_bytes(module, config)
    consistency.run_on_all_ranks_or_raise(lambda: is_first and checkpoints.require_disk_space(run, room))
    return Parts({}, config, run, start, data, module, sampler, callbacks, lightning_trainer, logger)


@contextmanager
def explained_errors(parts: Parts) -> Iterator[None]:
    """Raise UserError for memory that ran out (exit 75) and for a checkpoint of another network (exit 4)."""
    from diffusion_lit.system.memory import is_out_of_memory, suggest_smaller_batch
    from diffusion_lit.training.callbacks.non_finite import last_checkpoint

    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            where = f"out of memory after step {parts.trainer.global_step}; {last_checkpoint(parts.run)}, resume it"
            hint = suggest_smaller_batch(parts.config, collectives.world_size())
            raise UserError(Exit.INTERRUPTED, f"{where}: {hint}") from None
        if "loading state_dict" not in str(error):
            raise
        short = "\n".join(line.strip() for line in str(error).splitlines()[1:4])
        message = f"{parts.start} is of another network than model describes:\n{short}"
        raise UserError(Exit.CHECKPOINT, message) from None


def finish(parts: Parts) -> dict:
    """Draw what a signal left out, write result.json, measure class accuracy; return the result."""
    from diffusion_lit.training import run_messages
    from diffusion_lit.training.callbacks.sample_metrics import measure_class_accuracy
    from diffusion_lit.training.collective_sampling import continue_on_error

    config, run, module, step = parts.config, parts.run, parts.module, parts.trainer.global_step
    module.to(parts.trainer.strategy.root_device)  # Lightning puts it on the CPU when it is done
    if parts.callbacks.stop.ended_by is None:
        parts.callbacks.previews.step = step
        parts.callbacks.previews.draw_missing(module)
    result = run_messages.result_of(config, parts.callbacks, step)
    is_first = collectives.rank() == 0
    if is_first:
        run_dir.write_result(run, result)
    if result["status"] != "interrupted":
        with continue_on_error("measuring class accuracy"):
            result |= measure_class_accuracy(config, parts.data, module, parts.sampler)
        if is_first:
            run_dir.write_result(run, result)
    parts.logger.log_result(result)
    parts.logger.finish(result["exit_code"])
    log.info(run_messages.farewell(result, run))
    return result
