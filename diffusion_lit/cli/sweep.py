"""The jobs of a sweep: planned before the first one starts, run whatever becomes of the others, and counted."""

import gc
import logging
import os
import secrets
import shutil
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from diffusion_lit.cli import summary
from diffusion_lit.config.compose import compose_configs, compose_hydra_settings
from diffusion_lit.runs import run_dir, sweeps
from diffusion_lit.system import console
from diffusion_lit.system.errors import Exit, UserError, report_errors

log = logging.getLogger(__name__)

Task = Callable[[DictConfig], float | None]  # returns the value that a sweeper optimizes


class Sweep(NamedTuple):
    folder: Path  # of all jobs, whatever name or experiment they have
    keys: set[str]  # that are swept
    jobs: int
    queued: bool  # by submitit: they run in other processes, often of other machines
    metric: str | None  # that a sweeper optimises


def plan_sweep(
    config_name: str, overrides: list[str], config_dir: str | None, configs: list[DictConfig]
) -> tuple[Sweep, list[DictConfig]]:
    """The sweep of a command line, and the configurations of its jobs as far as they
    are known before it starts.

    Args:
        configs: those of the command line alone; a yaml file can sweep keys too, by `hydra.sweeper.params`.

    Raises:
        UserError: exit 2 for what the sweeper cannot do; exit 5 if the folder is in use.
    """
    hydra = compose_hydra_settings(config_name, overrides, config_dir)
    params = [f"{key}={value}" for key, value in (hydra.sweeper.get("params") or {}).items()]
    if params:
        overrides = [*params, *overrides]
        configs = compose_configs(config_name, overrides, config_dir)
        hydra = compose_hydra_settings(config_name, overrides, config_dir)
    swept = [word for word in OverridesParser.create().parse_overrides(overrides) if word.is_sweep_override()]
    intervals = [word.input_line for word in swept if word.is_interval_sweep()]
    if intervals and "BasicSweeper" in hydra.sweeper._target_:
        raise UserError(Exit.CONFIG, f"{intervals[0]}: an interval cannot be counted through: add hydra/sweeper=optuna")
    if "direction" in hydra.sweeper:
        check_direction(configs[0].get("metric"), hydra.sweeper.direction)
    if hydra.launcher.get("nodes", 1) * hydra.launcher.get("tasks_per_node", 1) != 1:  # of submitit
        raise UserError(
            Exit.CONFIG,
            "hydra.launcher.tasks_per_node, nodes: a job of a sweep is one task, which starts its processes itself: "
            "add strategy=ddp and hydra.launcher.gpus_per_node=<devices>",
        )
    try:
        run_dir = Path(hydra.sweep.dir)
    except OmegaConfBaseException as error:
        raise UserError(Exit.CONFIG, f"hydra.sweep.dir: {str(error).splitlines()[0]}") from None
    if config_name == "train" and sweeps.list_jobs(run_dir):
        raise UserError(Exit.OUTPUT, f"hydra.sweep.dir={run_dir} holds the jobs of another sweep: choose a new folder")
    keys, jobs = {word.get_key_element() for word in swept}, hydra.sweeper.get("n_trials") or len(configs)
    queued, metric = "submitit" in hydra.launcher._target_, configs[0].get("metric")
    return Sweep(run_dir, keys, jobs, queued, metric), configs


def check_direction(metric: str | None, direction: object) -> None:
    """Refuse a sweeper that would look for the worst value, or for none."""
    if metric is None:
        raise UserError(Exit.CONFIG, "hydra/sweeper: this command has no metric to optimise")
    wanted = "maximize" if metric in sweeps.HIGHER_IS_BETTER else "minimize"
    if getattr(direction, "name", direction) != wanted:
        better = "higher" if wanted == "maximize" else "lower"
        raise UserError(Exit.CONFIG, f"metric={metric} is better when {better}: add hydra.sweeper.direction={wanted}")


def run_sweep(start: Callable[[Task], Callable[[], None]], task: Task, sweep: Sweep, summarize: Task) -> int:
    """Run every job, whatever becomes of the others; the largest of their exit codes.
    Ctrl-C and SIGTERM end it all.

    Jobs may run in other processes (hydra/launcher=joblib) and on other machines
    (submitit_slurm), so what they end with is kept on disk, beside them.
    """
    os.environ.setdefault("SUBMITIT_PREEMPT_SIGNAL", "USR1")  # warned by it a run saves; submitit's own loses the rest
    os.environ.setdefault("SBATCH_REQUEUE", "1")  # whatever the cluster does by itself
    here, codes = (socket.gethostname(), os.getpid()), [0]
    ended = sweep.folder.resolve() / f".ended-{secrets.token_hex(4)}"

    def job(config: DictConfig) -> float | None:
        hydra = HydraConfig.get()
        number = hydra.job.num + 1
        words = [word for word in hydra.overrides.task if word.partition("=")[0] in sweep.keys]
        log.info("job %d of %d: %s", number, sweep.jobs, " ".join(words))
        if (socket.gethostname(), os.getpid()) != here:
            console.silence_console()
        value, code = run_and_report(task, config)
        saved = run_dir.read_result(Path(hydra.runtime.output_dir)).get("status") == "interrupted"
        again = code == Exit.INTERRUPTED and saved and is_in_queue()  # until it has run again it has no result
        codes.append(code)
        if code:
            log.error("job %d of %d ended with exit code %d", number, sweep.jobs, code)
        with suppress(OSError):  # on a full disk, or when nobody waits any more
            (ended / str(number)).write_text(str(code))
        with suppress(OSError):  # told of at the end
            sweeps.write_sweep_results(sweep.folder)
        if again or code in (Exit.SIGHUP, Exit.SIGINT, Exit.SIGTERM):
            sys.exit(code)
        gc.collect()  # what the job held of the device is free for the next one
        return sweeps.worst_objective(config.get("metric")) if code else value

    def jobs(_) -> None:
        ended.mkdir(parents=True)
        try:
            with show_queue_progress(ended, sweep), wait_for_queue(sweep, codes):
                start(job)()
        finally:
            codes.extend(int(file.read_text() or Exit.INTERRUPTED) for file in ended.iterdir())
            shutil.rmtree(ended, ignore_errors=True)
            with suppress(OSError):  # jobs of sample leave nothing in it
                sweep.folder.rmdir()

    codes.append(run_and_report(jobs, None)[1])
    summary_code = run_and_report(summarize, None)[1]
    return max(codes) or summary_code


def is_in_queue() -> bool:
    """Whether this process is a job of a sweep that SLURM has started by itself, and can start again by itself."""
    return os.environ.get("SUBMITIT_EXECUTOR") == "slurm"


@contextmanager
def wait_for_queue(sweep: Sweep, codes: list[int]) -> Iterator[None]:
    """Wait for every job in a queue. Hydra's launcher asks them one after the other for
    what they return, and one that was killed or cancelled, and returns nothing, would
    end the waiting for all others.
    """
    if not sweep.queued:
        yield
        return
    from submitit.core import core, utils

    results = core.Job.results

    def found(job: core.Job) -> list:
        try:
            return results(job)
        except (utils.UncompletedJobError, utils.FailedJobError) as error:
            told = str(error).splitlines()[0]
            log.error("job %s left no result (%s); what it printed: %s", job.job_id, told, job.paths.stderr)
            codes.append(Exit.INTERRUPTED)
            return [JobReturn(_return_value=sweeps.worst_objective(sweep.metric), status=JobStatus.COMPLETED)]

    core.Job.results = found
    try:
        yield
    finally:
        core.Job.results = results


@contextmanager
def show_queue_progress(ended: Path, sweep: Sweep) -> Iterator[None]:
    """A bar of the jobs in a queue that have ended; those that run here have bars of their own."""
    if not sweep.queued:
        yield
        return
    summary.print_lines(
        f"queued     {sweep.jobs} jobs; what they print is in {run_dir.display_path(sweep.folder / '.submitit')}"
    )
    over = threading.Event()

    def count() -> None:
        with console.progress_bar("job") as bar:
            task, known = bar.add_task("", total=sweep.jobs), 0
            while not over.wait(1):
                now = len(list(ended.iterdir()))
                bar.advance(task, now - known)
                known = now

    thread = threading.Thread(target=count, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def run_and_report(task: Task, config: DictConfig | None) -> tuple[float | None, int]:
    """What a task returns, and the exit code it ends with; its errors are told, in words or by a traceback."""
    try:
        with report_errors():
            return task(config), 0
    except SystemExit as end:
        return None, end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception:
        traceback.print_exc()
        log.exception("unexpected:", extra={"in_bar": True})  # on the terminal it is already
        return None, 1
