"""Start a run on all ranks: choose the checkpoint, launch the processes, and train on each of them.

This module does not import torch, so that the command line can report its errors at
once.
"""

import logging
import shutil
from contextlib import suppress
from pathlib import Path

from diffusion_lit.config.compose import build_source
from diffusion_lit.config.targets import trust
from diffusion_lit.data.captions import Captions, require_captions
from diffusion_lit.distributed import collectives, process_group
from diffusion_lit.runs import checkpoints, resume, run_dir
from diffusion_lit.system.imports import pause_garbage_collection
from diffusion_lit.system.platform import keep_freed_memory
from diffusion_lit.training.precision import resolve_precision
from diffusion_lit.training.run_result import existing_result

log = logging.getLogger(__name__)


def check_training_captions(config: dict, captions: Captions | None) -> None:
    """Raise DataError for a text encoder without captions of the training images."""
    if config["text_encoder"] and not config["data"].get("caption_colors"):
        require_captions(captions)


def fit(config: dict, source, run: Path, overrides: list[str]) -> dict:
    """Train on all ranks and return result.json. Called on rank 0, which alone writes and logs.

    Args:
        config: resolved configuration.
        source: data source, or None to make it from the configuration.
        run: the run folder, locked by the caller.
        overrides: of the command line, stored in the run folder.
    """
    resume_from = None
    if config["resume"] and checkpoints.list_steps(run):
        resume_from = checkpoints.select_checkpoint(run, warn=log.warning)
        config = resume.read_vocabulary(config, run)
    checkpoints.remove_partial_files(run)
    run_dir.remove_leftovers(run.parent, run_dir.BEFORE_TRAINING)
    if resume_from:
        checkpoints.rename_corrupt(run, resume_from)
    if config["data"].get("value_range") == "auto":
        from diffusion_lit.data.value_ranges import resolve_value_range

        splits = (source or build_source(config["data"])).splits()
        config = config | {"data": resolve_value_range(config["data"], splits)}
    if values := config["data"].get("value_range"):
        log.info("values     %g is black, %g white; training keeps 8 bits (data.value_range)", *values)
    if config["resume"] and not resume_from:
        log.info("%s has no checkpoint yet: starting from step 0", run_dir.display_path(run))
    is_launched = collectives.launcher_env("WORLD_SIZE")  # then the other ranks are waiting already
    if not is_launched and config["max_epochs"] is None and (result := existing_result(config, run, resume_from)):
        return result
    config = config | {"strategy": resolve_precision(config["strategy"], bool(config["resume"]))}
    try:
        with process_group.launch_ranks(config["strategy"]):
            with pause_garbage_collection():
                from diffusion_lit.training import train_rank

            config, run, resume_from = collectives.broadcast_from_rank_zero((config, run, resume_from))
            parts = train_rank.prepare_rank(config, source, run, resume_from, overrides)
            if isinstance(parts, dict):
                return parts
            with train_rank.explained_errors(parts, resume_from):  # no function around it: tracebacks stay short
                parts.trainer.fit(parts.module, parts.data, ckpt_path=resume_from, weights_only=True)
                return train_rank.finish_run(parts)
    finally:
        shutil.rmtree(run / "cache", ignore_errors=True)  # shared by the processes, see `load_data`


def follow() -> None:
    """Train on a rank other than 0, with the configuration that rank 0 sends."""
    keep_freed_memory()
    with process_group.follow_rank_zero():
        with pause_garbage_collection():
            from diffusion_lit.training import train_rank

        config, run, resume_from = collectives.broadcast_from_rank_zero(None)
        trust(config)  # rank 0 has checked it
        try:
            parts = train_rank.prepare_rank(config, None, run, resume_from)
            if not isinstance(parts, dict):
                with train_rank.explained_errors(parts, resume_from):
                    parts.trainer.fit(parts.module, parts.data, ckpt_path=resume_from, weights_only=True)
                    train_rank.finish_run(parts)
        finally:
            if not (run / ".lock").exists():  # this host does not share the run folder
                shutil.rmtree(run / "cache", ignore_errors=True)
                with suppress(OSError):
                    run.rmdir()
