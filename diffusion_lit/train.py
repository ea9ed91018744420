"""`python -m diffusion_lit.train`: from a command line to a trained model in a run folder."""

import atexit
import logging
import shutil
import signal
import sys
from pathlib import Path

from omegaconf import DictConfig

from diffusion_lit.cli.launch import launch
from diffusion_lit.cli.sweep import is_in_queue
from diffusion_lit.cli.train_overrides import is_multirun, prepare_train_overrides
from diffusion_lit.config.compose import resolve_data
from diffusion_lit.distributed import collectives, slurm, watchdog
from diffusion_lit.runs import resume, run_dir, sweeps, warm_start
from diffusion_lit.system import errors
from diffusion_lit.system.errors import Exit, UserError
from diffusion_lit.training.fit import fast_dev_run, fit, follow
from diffusion_lit.training.loggers import backends as loggers

log = logging.getLogger("diffusion_lit.train")


def main() -> None:
    slurm.export_torchrun_environment()
    with watchdog.exit_cleanly():
        if not collectives.launcher_env("RANK"):
            launch("train", train, prepare=prepare_train_overrides, check=check_train, is_trial=is_trial, trial=trial)
        elif not {"-h", "--help", "-c", "--cfg"} & set(sys.argv):  # those rank 0 answers alone
            follow()


def check_train(config: DictConfig) -> None:
    """What can be known of data, loggers and checkpoints without torch."""
    if config.plan and (is_multirun() or (collectives.launcher_env("WORLD_SIZE") or 1) > 1):
        raise UserError(Exit.CONFIG, "plan=true measures one run in one process: leave out --multirun and torchrun")
    loggers.require_package(config.logger)
    facts, source = with_facts(config)
    source.splits()
    if facts["best_by"] == "class_accuracy" and not facts["data"]["class_names"]:
        raise UserError(Exit.CONFIG, "best_by=class_accuracy: these pictures have no classes")
    if facts["resume"]:
        resume.check_continuation(Path(facts["resume"]), facts)
    else:
        run_dir.require_unused(Path(facts["run_dir"]))
        warm_start.check_initial_weights(facts)
    from diffusion_lit.runs.build import check_network  # last, for it imports torch

    check_network(facts)


def with_facts(config: DictConfig) -> tuple[dict, object]:
    """The resolved configuration with what data and a pretrained network say themselves, and the source."""
    facts, source = resolve_data(config)
    return warm_start.resolve_architecture(facts), source


def train(config: DictConfig) -> float:
    """One run. Returns its value of `metric`, for a sweeper that optimises."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    job = HydraConfig.get()
    run, overrides = Path(job.runtime.output_dir), list(job.overrides.task)
    lock, ours = None, False
    try:
        with errors.hold_signals():  # one between the two would leave a lock behind and nothing else
            lock = run_dir.RunLock(run)
            if job.mode == RunMode.MULTIRUN and slurm.is_restarted() and not run_dir.is_unused(run):
                config.resume = str(run)  # nobody types it: the queue starts a job of a sweep as it was
            if not config.resume:
                run_dir.require_unused(run)  # again: in a sweep, or with hydra.run.dir, it is not the folder of the key
            ours = True
        config, source = with_facts(config)
        config["run_dir"] = str(run_dir.display_path(run))  # of a sweep's job it is another one than the key says
        result = fit(config, source, run, overrides)
    except BaseException as error:
        if not ours:
            raise
        begun = config["resume"] or (run / "metrics.csv").exists()
        if job.mode == RunMode.MULTIRUN:
            sweeps.write_failed_job(run, overrides, error)
        elif isinstance(error, UserError | OSError | KeyboardInterrupt | SystemExit) and not begun:
            shutil.rmtree(run, ignore_errors=True)  # it was new, and training never began: leave nothing behind
        raise
    finally:
        if lock:
            lock.release()
    if result["exit_code"]:
        if result["exit_code"] == Exit.INTERRUPTED and (job.mode != RunMode.MULTIRUN or is_in_queue()):
            atexit.register(slurm.requeue_job)  # SLURM ends the job at once, so when all is written
        sys.exit(result["exit_code"])
    return sweeps.sweep_objective(result, config["metric"])


def is_trial(config: DictConfig) -> bool:
    return config.plan or bool(config.trainer.fast_dev_run)


def trial(config: DictConfig) -> None:
    """Do what plan=true or trainer.fast_dev_run=true asks for; nothing is left behind."""

    def stop(number: int, frame: object) -> None:  # of a KeyboardInterrupt Lightning would make exit code 1
        print("stopped; nothing is left behind", file=sys.stderr)
        sys.exit(128 + number)

    signal.signal(signal.SIGINT, stop)
    if config.plan:
        from diffusion_lit.training.plan import plan

        plan(*with_facts(config), sys.argv[1:])
    else:
        fast_dev_run(*with_facts(config))


if __name__ == "__main__":
    main()
