"""The jobs of a sweep: planned before the first one starts, and all run, whatever becomes of the others."""

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
from diffusion_lit.cli.sweep_checks import check_metric, require_distinct
from diffusion_lit.config.compose import compose_configs, compose_hydra_settings
from diffusion_lit.config.overrides import format_command, format_override
from diffusion_lit.runs import run_dir, run_lock, sweeps
from diffusion_lit.system import console
from diffusion_lit.system.errors import ConfigError, Exit, report_errors

log = logging.getLogger(__name__)

Task = Callable[[DictConfig], float | None]  # returns the value that a sweeper optimizes


class Sweep(NamedTuple):
    """A planned sweep.

    Attributes:
        folder: folder of all jobs.
        keys: swept keys.
        jobs: number of jobs.
        is_queued: whether submitit runs the jobs, in other processes and often on other hosts.
        metric: value of result.json that a sweeper optimizes.
        verb: name of the command.
        overrides: of the jobs, by which the same command continues a killed sweep; None if it
            cannot be continued.
        typed: overrides as they were typed, from which the command made `overrides`.
    """

    folder: Path
    keys: set[str]
    jobs: int
    is_queued: bool
    metric: str | None
    verb: str
    overrides: list[str] | None
    typed: list[str]


def plan_sweep(
    config_name: str, overrides: list[str], config_dir: str | None, configs: list[DictConfig], typed: list[str]
) -> tuple[Sweep, list[DictConfig]]:
    """Return the sweep of a command line, and the configurations of its jobs as far as they are known.

    Args:
        config_name: name of the command.
        overrides: its overrides.
        config_dir: folder of more yaml files.
        configs: configurations of the command line; `hydra.sweeper.params` may sweep more keys.
        typed: overrides as they were typed.

    Raises:
        UserError: exit 2 for what the sweeper cannot do; exit 5 if the folder is in use.
    """
    hydra = compose_hydra_settings(config_name, overrides, config_dir)
    params = [f"{key}={value}" for key, value in (hydra.sweeper.get("params") or {}).items()]
    if params:
        overrides = [*params, *overrides]
        configs = compose_configs(config_name, overrides, config_dir)
        hydra = compose_hydra_settings(config_name, overrides, config_dir)
    parsed = OverridesParser.create().parse_overrides(overrides)
    swept = [override for override in parsed if override.is_sweep_override()]
    intervals = [override.input_line for override in swept if override.is_interval_sweep()]
    is_grid = "BasicSweeper" in hydra.sweeper._target_
    if intervals and is_grid:
        raise ConfigError(f"{intervals[0]}: the basic sweeper does not support interval(). Add hydra/sweeper=optuna")
    require_distinct(config_name, configs, [override.input_line for override in swept], is_grid)
    if hydra.launcher.get("nodes", 1) * hydra.launcher.get("tasks_per_node", 1) != 1:  # of submitit
        raise ConfigError(
            "hydra.launcher.tasks_per_node, nodes: a job of a sweep is one task that starts its own processes. "
            "Add strategy=ddp and hydra.launcher.gpus_per_node=<devices>"
        )
    try:
        folder = Path(hydra.sweep.dir)
    except OmegaConfBaseException as error:
        raise ConfigError(f"hydra.sweep.dir: {str(error).splitlines()[0]}") from None
    run_dir.require_possible(folder, "hydra.sweep.dir")
    keys = {override.get_key_element() for override in swept}
    metric = check_metric(configs[0], overrides, keys, hydra.sweeper.get("direction"))
    recorded = None
    if config_name in ("train", "evaluate"):
        recorded = [override for override in overrides if not override.startswith("hydra.sweep.dir=")]
        is_random = "direction" in hydra.sweeper and hydra.sweeper.sampler.get("seed") is None
        sweeps.check_continuation(folder, recorded, is_random)
    is_queued, jobs = "submitit" in hydra.launcher._target_, hydra.sweeper.get("n_trials") or len(configs)
    return Sweep(folder, keys, jobs, is_queued, metric, config_name, recorded, typed), configs


def run_sweep(start: Callable[[Task], Callable[[], None]], task: Task, sweep: Sweep, summarize: Task) -> int:
    """Run every job, whatever becomes of the others, and return the largest of their exit codes.

    Ctrl-C and SIGTERM end all jobs. Exit codes go through files in the folder of the sweep,
    for jobs may run in other processes (hydra/launcher=joblib) and on other hosts
    (submitit_slurm).

    Args:
        start: Hydra's main, which takes the job.
        task: runs one job.
        sweep: the planned sweep.
        summarize: runs at the end.
    """
    # warned by SIGUSR1 a run saves its last step, which submitit's own handling would lose
    os.environ.setdefault("SUBMITIT_PREEMPT_SIGNAL", "USR1")
    os.environ.setdefault("SBATCH_REQUEUE", "1")
    here, codes = (socket.gethostname(), os.getpid()), [0]
    finished = sweep.folder.resolve() / f".ended-{secrets.token_hex(4)}"

    def run_job(config: DictConfig) -> float | None:
        hydra = HydraConfig.get()
        number, folder, metric = hydra.job.num + 1, Path(hydra.runtime.output_dir), sweep.metric
        swept = [override for override in hydra.overrides.task if override.partition("=")[0] in sweep.keys]
        log.info("job %d of %d: %s", number, sweep.jobs, " ".join(swept))
        if (socket.gethostname(), os.getpid()) != here:
            console.silence_console()
        value, code = sweeps.find_finished_value(folder, list(hydra.overrides.task), metric), 0
        if sweep.overrides and value is not None:
            log.info("job %d of %d has finished before", number, sweep.jobs)
        else:
            value, code = run_and_report(task, config)
        has_saved = run_dir.read_result(folder).get("status") == "interrupted"
        is_requeued = code == Exit.INTERRUPTED and has_saved and is_in_queue()
        codes.append(code)
        if code:
            log.error("job %d of %d ended with exit code %d", number, sweep.jobs, code)
        with suppress(OSError):  # a full disk, or the waiting process is gone
            (finished / str(number)).write_text(str(code), encoding="utf-8")
        with suppress(OSError):  # reported at the end
            sweeps.write_sweep_results(sweep.folder)
        if is_requeued or code in (Exit.SIGHUP, Exit.SIGINT, Exit.SIGTERM):
            sys.exit(code)
        gc.collect()  # free the device for the next job
        return sweeps.get_worst_objective(metric) if code else value

    def run_all_jobs(_) -> None:
        try:
            with hold_sweep(sweep, finished), show_queue_progress(finished, sweep), wait_for_queue(sweep, codes):
                start(run_job)()
        finally:
            codes.extend(int(file.read_text(encoding="utf-8") or Exit.INTERRUPTED) for file in finished.glob("*"))
            shutil.rmtree(finished, ignore_errors=True)
            with suppress(OSError):  # jobs of sample leave the folder empty
                sweep.folder.rmdir()

    codes.append(run_and_report(run_all_jobs, None)[1])
    summary_code = run_and_report(summarize, None)[1]
    if max(codes) >= Exit.INTERRUPTED:
        print_continuation(sweep)
    return max(codes) or summary_code


@contextmanager
def hold_sweep(sweep: Sweep, finished: Path) -> Iterator[None]:
    """Lock the folder of a sweep, record its overrides, and make the folder of exit codes.

    Raises:
        UserError: exit 5 if another process runs this sweep.
    """
    sweep.folder.mkdir(parents=True, exist_ok=True)
    lock = run_lock.RunLock(sweep.folder) if sweep.overrides else None
    for folder in sweep.folder.glob(".ended-*") if lock else ():  # of a killed process
        shutil.rmtree(folder, ignore_errors=True)
    finished.mkdir()
    try:
        if lock:
            sweeps.record_sweep(sweep.folder, sweep.overrides, sweep.jobs)
        yield
    finally:
        if lock:
            lock.release(remove=True)


def print_continuation(sweep: Sweep) -> None:
    """Print the command that continues a sweep, if it can be continued."""
    if sweep.overrides:
        typed = [override for override in sweep.typed if not override.startswith(("hydra.sweep.dir=", "resume="))]
        folder = format_override("hydra.sweep.dir", run_dir.display_path(sweep.folder))
        command = format_command(sweep.verb, "--multirun", *typed, folder)
        summary.print_lines(f"To continue: {command}")


def is_in_queue() -> bool:
    """Return whether this process is a job of a sweep that SLURM starts, and can start again."""
    return os.environ.get("SUBMITIT_EXECUTOR") == "slurm"


@contextmanager
def wait_for_queue(sweep: Sweep, codes: list[int]) -> Iterator[None]:
    """Let Hydra's launcher wait for every job in a queue.

    It collects the results one after the other, and would stop at a job that was killed
    or cancelled. Here such a job returns the worst value, and adds to the exit codes.
    """
    if not sweep.is_queued:
        yield
        return
    from submitit.core import core, utils

    results = core.Job.results

    def results_or_worst(job: core.Job) -> list:
        try:
            return results(job)
        except (utils.UncompletedJobError, utils.FailedJobError) as error:
            why = str(error).splitlines()[0]
            log.error("job %s left no result (%s). Its output: %s", job.job_id, why, job.paths.stderr)
            codes.append(Exit.INTERRUPTED)
            return [JobReturn(_return_value=sweeps.get_worst_objective(sweep.metric), status=JobStatus.COMPLETED)]

    core.Job.results = results_or_worst
    try:
        yield
    finally:
        core.Job.results = results


@contextmanager
def show_queue_progress(finished: Path, sweep: Sweep) -> Iterator[None]:
    """Show a progress bar of finished jobs in a queue.

    Jobs in this process have bars of their own.
    """
    if not sweep.is_queued:
        yield
        return
    logs = run_dir.display_path(sweep.folder / ".submitit")
    summary.print_lines(f"queued     {sweep.jobs} jobs, their output is in {logs}")
    is_over = threading.Event()

    def count_jobs() -> None:
        with console.progress_bar("job") as bar:
            task, counted = bar.add_task("", total=sweep.jobs), 0
            while not is_over.wait(1):
                count = len(list(finished.iterdir()))
                bar.advance(task, count - counted)
                counted = count

    thread = threading.Thread(target=count_jobs, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def run_and_report(task: Task, config: DictConfig | None) -> tuple[float | None, int]:
    """Run a task and report its errors; return its value and its exit code."""
    try:
        with report_errors():
            return task(config), 0
    except SystemExit as end:
        return None, end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception:
        traceback.print_exc()
        log.exception("unexpected:", extra={"file_only": True})  # the terminal has it already
        return None, 1
