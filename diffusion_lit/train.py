"""`python -m diffusion_lit.train`: from a command line to a trained model in a run folder."""

import atexit
import logging
import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path

from omegaconf import DictConfig

from diffusion_lit.cli.launch import is_in_queue, launch
from diffusion_lit.config.compose import composed, with_data_facts
from diffusion_lit.config.debug import with_debug
from diffusion_lit.config.overrides import value_of
from diffusion_lit.config.targets import trust
from diffusion_lit.distributed import collectives, process_group, slurm, watchdog
from diffusion_lit.runs import checkpoints, resume, run_dir, sweeps, warm_start
from diffusion_lit.system import errors
from diffusion_lit.system.errors import Exit, UserError
from diffusion_lit.training.loggers import base

log = logging.getLogger("diffusion_lit.train")


def main() -> None:
    slurm.as_torchrun()
    with watchdog.ended_in_order():
        if not collectives.launcher_env("RANK"):
            launch("train", train, prepare=prepare, check=check, dry=dry)
        elif not {"-h", "--help", "-c", "--cfg"} & set(sys.argv):  # those rank 0 answers alone
            follow()


def prepare(overrides: list[str], config_dir: str | None) -> list[str]:
    """With `resume=`, the command line of that run continued; torch is not needed for any of it."""
    asked = value_of("resume", overrides)
    multirun = is_multirun()
    if multirun and (collectives.launcher_env("WORLD_SIZE") or 1) > 1:
        raise UserError(
            Exit.CONFIG, "a sweep starts the processes of its jobs itself: use python -m, not torchrun or srun"
        )
    if not isinstance(asked, str) or not asked:
        return expanded(overrides, config_dir)
    if multirun:
        raise UserError(Exit.CONFIG, "resume= goes on with one run, --multirun starts several: leave one of them out")
    rest = [word for word in overrides if not word.startswith("resume=")]
    if asked != "auto":
        return with_one_length(resume.continued_overrides(run_dir.require_run(asked), rest))
    name = composed("train", expanded(rest, config_dir), config_dir, complete=False)[0].name
    run = run_dir.newest_run(Path("outputs", name))
    if run is None:
        print(f"resume=auto: no run in outputs/{name} yet, starting a new one")
        return expanded(rest, config_dir)
    return with_one_length(resume.continued_overrides(run, rest))


def is_multirun() -> bool:
    return bool({"-m", "--multirun", "hydra.mode=MULTIRUN"} & set(sys.argv))


def expanded(overrides: list[str], config_dir: str | None) -> list[str]:
    """The words that a command line stands for: its experiment, and with `debug=on` everything small."""
    debug = value_of("debug", overrides)
    rest = with_default_experiment([word for word in overrides if not word.startswith("debug=")])
    if debug not in (None, "on", "off"):
        raise UserError(Exit.CONFIG, f"debug={debug}: must be on or off")
    if debug == "on":
        rest = with_debug(rest, composed("train", rest, config_dir, complete=False)[0])
    return with_one_length(rest)


def with_one_length(overrides: list[str]) -> list[str]:
    """`max_steps` among the words wins over `max_epochs` of an experiment; both among them contradict each other."""
    keys = {word.partition("=")[0] for word in overrides}
    if "max_steps" in keys and value_of("max_epochs", overrides) is not None:
        raise UserError(Exit.CONFIG, "max_steps and max_epochs each say how long the run is: leave one of the two out")
    wins = {"max_steps", "experiment"} <= keys and "max_epochs" not in keys
    return [*overrides, "max_epochs=null"] if wins else overrides


def with_default_experiment(overrides: list[str]) -> list[str]:
    """The bare command is experiment=digits; whoever names data means that data, with the values of train.yaml."""
    words = {word.partition("=")[0]: word.partition("=")[2] for word in overrides}
    if words.get("data", "digits") != "digits" and "experiment" not in words:
        return ["experiment=none", *overrides]
    return overrides


def check(config: DictConfig) -> None:
    """What can be known of data, loggers and checkpoints without torch."""
    if config.plan and (is_multirun() or (collectives.launcher_env("WORLD_SIZE") or 1) > 1):
        raise UserError(Exit.CONFIG, "plan=true measures one run in one process: leave out --multirun and torchrun")
    base.check(config.logger)
    facts, source = with_facts(config)
    source.splits()
    if facts["best_by"] == "class_accuracy" and not facts["data"]["class_names"]:
        raise UserError(Exit.CONFIG, "best_by=class_accuracy: these pictures have no classes")
    if facts["resume"]:
        resume.check_continuation(Path(facts["resume"]), facts)
    else:
        run_dir.require_free(Path(facts["run_dir"]))
        warm_start.check(facts)


def with_facts(config: DictConfig) -> tuple[dict, object]:
    """The resolved configuration with what data and a pretrained network say themselves, and the source."""
    facts, source = with_data_facts(config)
    return warm_start.with_architecture(facts), source


def train(config: DictConfig) -> float:
    """One run. Returns its value of `metric`, for a sweeper that optimises."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    job = HydraConfig.get()
    run, overrides = Path(job.runtime.output_dir), list(job.overrides.task)
    lock, ours = None, False
    try:
        with errors.signals_held():  # one between the two would leave a lock behind and nothing else
            lock = run_dir.Lock(run)
            if job.mode == RunMode.MULTIRUN and slurm.is_restarted() and not run_dir.is_free(run):
                config.resume = str(run)  # nobody types it: the queue starts a job of a sweep as it was
            if not config.resume:
                run_dir.require_free(run)  # again: in a sweep, or with hydra.run.dir, it is not the folder of the key
            ours = True
        config, source = with_facts(config)
        config["run_dir"] = str(run_dir.shown(run))  # of a sweep's job it is another one than the key says
        result = fit(config, source, run, overrides)
    except BaseException as error:
        if not ours:
            raise
        begun = config["resume"] or (run / "metrics.csv").exists()
        if job.mode == RunMode.MULTIRUN:
            sweeps.write_failure(run, overrides, error)
        elif isinstance(error, UserError | OSError | KeyboardInterrupt | SystemExit) and not begun:
            shutil.rmtree(run, ignore_errors=True)  # it was new, and training never began: leave nothing behind
        raise
    finally:
        if lock:
            lock.release()
    if result["status"] != "finished":
        if result["exit_code"] == Exit.INTERRUPTED and (job.mode != RunMode.MULTIRUN or is_in_queue()):
            atexit.register(slurm.queue_again)  # SLURM ends the job at once, so when all is written
        sys.exit(result["exit_code"])
    return sweeps.objective(result, config["metric"])


def dry(config: DictConfig) -> None:
    """With plan=true: all that can go wrong before the first step, then measurements; nothing is left behind."""
    from diffusion_lit.training.plan import plan

    def stop(number: int, frame: object) -> None:  # of a KeyboardInterrupt Lightning would make exit code 1
        print("stopped; nothing is left behind", file=sys.stderr)
        sys.exit(128 + number)

    signal.signal(signal.SIGINT, stop)
    plan(*with_facts(config), sys.argv[1:])


def fit(config: dict, source, run: Path, overrides: list[str]) -> dict:
    """Everything from here on needs torch; the other ranks join in."""
    start = checkpoints.choose(run, warn=log.warning) if config["resume"] and checkpoints.steps_of(run) else None
    checkpoints.sweep_up(run)
    if start:
        checkpoints.set_aside(run, start)
    if config["resume"] and not start:
        log.info("%s has no checkpoint yet: starting from step 0", run_dir.shown(run))
    launched = collectives.launcher_env("WORLD_SIZE")  # then the other ranks wait already
    if not launched and config["max_epochs"] is None and (done := finished(config, run, start)):
        return done
    try:
        with process_group.together(config["strategy"]):
            config, run, start = collectives.broadcast_from_rank_zero((config, run, start))
            return fit_on_all(config, source, run, start, overrides)
    finally:
        shutil.rmtree(run / "cache", ignore_errors=True)  # what processes shared; see `load_data`


def finished(config: dict, run: Path, start: Path | None) -> dict:
    """result.json of a run that is as long as it should be already, or nothing."""
    done = run_dir.read_result(run)
    if not start or done.get("status") != "finished" or done["steps"] < config["max_steps"]:
        return {}
    length = "max_steps" if config["max_epochs"] is None else "max_epochs"
    log.info("%s is already at step %d of %d; raise %s to go on", run, done["steps"], config["max_steps"], length)
    return done


def follow() -> None:
    """What every rank but the first does: all that it has to know comes from there."""
    with process_group.following():
        config, run, start = collectives.broadcast_from_rank_zero(None)
        trust(config)  # rank 0 would not have come here otherwise
        try:
            fit_on_all(config, None, run, start)
        finally:
            if not (run / ".lock").exists():  # on another host, which does not see the run folder
                shutil.rmtree(run / "cache", ignore_errors=True)
                with suppress(OSError):
                    run.rmdir()


def fit_on_all(config: dict, source, run: Path, start: Path | None, overrides: list[str] | None = None) -> dict:
    """Train on every rank at once; only rank 0, which has the `overrides`, writes and speaks."""
    from diffusion_lit.distributed import collectives, consistency
    from diffusion_lit.runs.build import make_sampler_of
    from diffusion_lit.system.memory import advice, is_out_of_memory
    from diffusion_lit.training import quality, setup
    from diffusion_lit.training.module import checkpoint_bytes, snapshot_bytes
    from diffusion_lit.training.recorder import Recorder
    from diffusion_lit.training.shared import not_fatal
    from diffusion_lit.training.snapshots import Snapshots

    first = collectives.rank() == 0
    consistency.check_checkpoint_on_all_hosts(start)
    data = setup.load_data(config, source, run)
    config = config | {"max_steps": setup.length_in_steps(config, len(data.train))}
    if done := collectives.broadcast_from_rank_zero(finished(config, run, start) if first else None):
        return done
    module = setup.make_module(config)
    begun_from = None if start else consistency.run_on_all_ranks_or_raise(lambda: setup.begin(module, config))
    logger = base.make_logger(config["logger"], first)
    recorder = Recorder(run, make_sampler_of(config), config, logger)
    snapshots = Snapshots(run, config["ema_snapshot_every"])
    trainer = setup.make_trainer(config, run, module.net, snapshots, recorder)
    if first:
        run_dir.write_start(run, config, overrides)
        log.info(setup.summary(config, data, module, run, start))
        if begun_from:
            log.info(begun_from)
    room = 3 * checkpoint_bytes(module) + snapshot_bytes(module)
    consistency.run_on_all_ranks_or_raise(lambda: first and checkpoints.require_room(run, room))
    with logger:
        try:
            trainer.fit(module, data, ckpt_path=start, weights_only=True)
        except Exception as error:
            if is_out_of_memory(error):
                told = f"out of memory after step {recorder.step}; {recorder.last_checkpoint()}, resume it"
                raise UserError(Exit.INTERRUPTED, f"{told}: {advice(config, collectives.world_size())}") from None
            if "loading state_dict" not in str(error):
                raise
            short = "\n".join(line.strip() for line in str(error).splitlines()[1:4])
            raise UserError(Exit.CHECKPOINT, f"{start} is of another network than model describes:\n{short}") from None
        module.to(trainer.strategy.root_device)  # Lightning puts it on the CPU when it is done
        result = setup.finish(config, module, recorder, trainer.global_step)
        if first:
            run_dir.write_result(run, result)
        if result["status"] == "finished":
            with not_fatal("judging the samples"):
                result |= quality.judge(config, data, module, recorder.sampler)
        if first:
            run_dir.write_result(run, result)
        logger.summary(result)
        logger.finish(result["exit_code"])
    log.info(setup.farewell(result, run))
    return result


if __name__ == "__main__":
    main()
