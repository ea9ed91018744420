"""`python -m diffusion_lit.train`: train a model in a run folder."""

import atexit
import shutil
import sys
from pathlib import Path

from omegaconf import DictConfig

from diffusion_lit.cli.launch import launch
from diffusion_lit.cli.sweep import is_in_queue
from diffusion_lit.cli.train_overrides import is_multirun, prepare_train_overrides
from diffusion_lit.cli.trial import is_trial, run_trial
from diffusion_lit.config.metric_columns import METRIC_COLUMNS, NEEDS_CLASSES
from diffusion_lit.distributed import collectives, slurm, watchdog
from diffusion_lit.runs import resume, run_dir, run_lock, sweeps, teacher, warm_start
from diffusion_lit.system.errors import ConfigError, Exit, UserError, hold_signals
from diffusion_lit.system.imports import import_torch
from diffusion_lit.training.launch_run import check_training_captions, fit, follow
from diffusion_lit.training.loggers import backends as loggers


def main() -> None:
    """Run the command. Processes that a launcher such as torchrun started follow rank 0."""
    slurm.export_torchrun_environment()
    with watchdog.exit_cleanly():
        if not collectives.launcher_env("RANK"):
            launch("train", train, prepare_train_overrides, check_train, is_trial=is_trial, trial=run_trial)
        elif not {"-h", "--help", "-c", "--cfg"} & set(sys.argv):  # answered by rank 0 alone
            follow()


def check_train(config: DictConfig) -> None:
    """Raise UserError for faults of data, loggers, checkpoints and network. Only the last check imports torch."""
    if config.plan and (is_multirun() or (collectives.launcher_env("WORLD_SIZE") or 1) > 1):
        raise ConfigError("plan=true measures one run in one process: leave out --multirun and torchrun")
    loggers.require_package(config.logger)
    resolved, source = warm_start.resolve_training_config(config)
    check_training_captions(resolved, source.splits()["train"].captions)
    best_by, class_names = resolved["best_by"], resolved["data"]["class_names"]
    if not class_names and any(best_by in METRIC_COLUMNS[name] for name in NEEDS_CLASSES):
        raise ConfigError(f"best_by={best_by}: the data has no classes")
    if resolved["resume"]:
        resume.check_continuation(Path(resolved["resume"]), resolved)
    else:
        run_dir.require_unused(Path(resolved["run_dir"]))
        teacher.check_teacher(resolved)
        warm_start.check_initial_weights(resolved)
    import_torch()
    from diffusion_lit.runs.build import check_network

    check_network(resolved)


def train(config: DictConfig) -> float:
    """Train one run in the output folder of Hydra, and return its value of `metric` for a sweeper.

    A run that does not complete ends the process with the exit code of result.json.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    job = HydraConfig.get()
    run, overrides, is_sweep = Path(job.runtime.output_dir), list(job.overrides.task), job.mode == RunMode.MULTIRUN
    lock, is_owner = None, False
    try:
        with hold_signals():  # a signal right after the lock would leave a folder with nothing but the lock
            lock = run_lock.RunLock(run)
            if is_sweep and sweeps.is_same_job(run, overrides):  # the sweep is continued, or SLURM restarts its job
                config.resume = str(run) if run_dir.is_run_dir(run) else None
            elif not config.resume:
                run_dir.require_unused(run)  # in a sweep, or with hydra.run.dir, it is not the folder of run_dir=
            is_owner = True
        config, source = warm_start.resolve_training_config(config)
        config["run_dir"] = str(run_dir.display_path(run))
        from diffusion_lit.inspection.image_facts import log_sheets

        log_sheets(config["data"], source)
        result = fit(config, source, run, overrides)
    except BaseException as error:
        if is_owner:
            lock.raise_if_moved(error)  # whatever is in its place now is not this run
        has_begun = not is_owner or config["resume"] or (run / "metrics.csv").exists()
        if is_sweep and is_owner:
            sweeps.write_failed_job(run, overrides, error)
        elif isinstance(error, UserError | OSError | KeyboardInterrupt | SystemExit) and not has_begun:
            shutil.rmtree(run, ignore_errors=True)  # a new folder in which training never began
        raise
    finally:
        if lock:
            lock.release()
    if result["exit_code"]:
        if result["exit_code"] == Exit.INTERRUPTED and (not is_sweep or is_in_queue()):
            atexit.register(slurm.requeue_job)  # at exit, because SLURM ends the job at once
        sys.exit(result["exit_code"])
    return sweeps.compute_objective(result, sweeps.choose_metric(config))


if __name__ == "__main__":
    main()
