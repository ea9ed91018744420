"""Launch a command: compose and check its command line, then run its job or its sweep."""

import sys
import threading
from argparse import Namespace
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from hydra import main as hydra_main
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from diffusion_lit.cli import summary
from diffusion_lit.cli.hydra_flags import check_flags, explain_hydra_errors, render_config, start_hydra
from diffusion_lit.cli.sweep import Sweep, Task, plan_sweep, run_sweep
from diffusion_lit.config.compose import compose_configs, compose_hydra_settings
from diffusion_lit.config.foreign_flags import answer_flags
from diffusion_lit.config.groups import CONF, list_keys
from diffusion_lit.config.overrides import format_override
from diffusion_lit.config.reference import render_help
from diffusion_lit.config.secrets import refuse_secrets
from diffusion_lit.config.targets import trust_overrides
from diffusion_lit.system import console
from diffusion_lit.system.errors import PENDING_SIGNALS, ConfigError, Exit, UserError, report_errors
from diffusion_lit.system.files import require_working_directory
from diffusion_lit.system.imports import pause_garbage_collection
from diffusion_lit.system.platform import keep_freed_memory

Prepare = Callable[[list[str], str | None], list[str]]

WHEN_STOPPED = {"app": ["stopped; the page is closed"]}  # of commands that save nothing


def launch(
    config_name: str,
    task: Task,
    prepare: Prepare,
    check: Callable[[DictConfig], None],
    summarize: Callable[[Path, DictConfig], None] = lambda folder, config: summary.summarize_sweep(folder),
    is_trial: Callable[[DictConfig], bool] = lambda config: False,
    trial: Callable[[DictConfig], None] | None = None,
) -> None:
    """Run a command by Hydra. A UserError ends it with its message and exit code.

    Args:
        config_name: name of the command and of its yaml file.
        task: runs one job.
        prepare: turns overrides and --config-dir into the overrides to compose.
        check: raises UserError for a composed configuration whose data or files do not fit.
        summarize: runs after a sweep, with its folder and the configuration of its first job.
        is_trial: whether `trial` runs in place of `task`, without the folder that Hydra makes.
        trial: see `is_trial`.
    """
    PENDING_SIGNALS.clear()
    console.accept_any_text()
    args, unknown_flags = get_args_parser().parse_known_intermixed_args()
    if args.help:
        console.print_text(render_help(config_name, args.overrides))
        return
    keep_freed_memory()
    is_query = bool(args.cfg or args.info or args.hydra_help or args.shell_completion)
    with report_errors("stopped; nothing was started"):
        require_working_directory()
        refuse_secrets(sys.argv[1:])
        check_flags(args)
        _answer_flags(config_name, unknown_flags, args.overrides)
        overrides, sweep, configs = unknown_flags + args.overrides, None, []
        if args.cfg or not is_query:
            trust_overrides(args.overrides)  # typed ones only: `prepare` may add those of a run folder
            overrides = _prepare(config_name, prepare, overrides, args.config_dir)
            overrides, sweep, configs = _compose(config_name, overrides, args, check)
    if args.cfg == "job":
        _print_config(configs[0], args)
        return
    threading.excepthook = console.log_thread_exception
    if configs and not args.cfg and is_trial(configs[0]):
        settings = compose_hydra_settings(config_name, overrides, args.config_dir)
        _run_trial(trial, configs[0], OmegaConf.to_container(settings.job_logging))
        return
    sys.argv[1:] = [*overrides, *[argument for argument in sys.argv[1:] if argument not in args.overrides]]
    decorate = hydra_main(version_base="1.3", config_path=str(CONF), config_name=config_name)
    if sweep:
        job = partial(_run_sweep_job, task, config_name, args.config_dir)
        sys.exit(run_sweep(partial(start_hydra, decorate), job, sweep, lambda _: summarize(sweep.folder, configs[0])))

    with console.ignore_closed_pipe() if is_query else nullcontext(), explain_hydra_errors() as begin:

        def run_job(config: DictConfig) -> None:
            begin()
            with report_errors(*WHEN_STOPPED.get(config_name, ())):
                task(configs[0])

        decorate(run_job)()


@pause_garbage_collection()  # the last check imports torch and diffusers
def _compose(
    config_name: str, overrides: list[str], args: Namespace, check: Callable[[DictConfig], None]
) -> tuple[list[str], Sweep | None, list[DictConfig]]:
    """Return the overrides that Hydra runs, the planned sweep if there is one, and the checked configurations."""
    is_sweep = args.multirun or "hydra.mode=MULTIRUN" in overrides
    configs = compose_configs(config_name, overrides, args.config_dir, not args.cfg, is_sweep)
    if args.cfg:
        return overrides, None, configs
    sweep = None
    if is_sweep:
        sweep, configs = plan_sweep(config_name, overrides, args.config_dir, configs, args.overrides)
        overrides = [*overrides, format_override("hydra.sweep.dir", sweep.folder)]
    for config in configs:
        check(config)
    return overrides, sweep, configs


def _run_trial(trial: Callable[[DictConfig], None], config: DictConfig, job_logging: dict) -> None:
    console.configure_logging_without_file(job_logging)
    with report_errors("stopped; nothing is left behind"):
        trial(config)


def _print_config(config: DictConfig, args: Namespace) -> None:
    """Print a configuration for `--cfg job`, in place of Hydra, whose has keys that the choices drop."""
    with report_errors():
        console.print_text(render_config(config, args.package, args.resolve).rstrip())


def _answer_flags(config_name: str, flags: list[str], others: list[str]) -> None:
    """Raise UserError (exit 2) with the overrides that unknown flags stand for, if any are known."""
    arguments = [text for text in sys.argv[1:] if text in (*flags, *others)]
    if flags and (answer := answer_flags(config_name, arguments, flags, list_keys(config_name))):
        raise ConfigError(answer)


def _prepare(config_name: str, prepare: Prepare, overrides: list[str], config_dir: str | None) -> list[str]:
    """Return the prepared overrides.

    An error about the run that they name also lists other faults.
    """
    try:
        return prepare(overrides, config_dir)
    except UserError as error:
        if error.exit_code == Exit.CHECKPOINT and config_name not in ("train", "visualize"):  # keys depend on the run
            try:
                compose_configs(config_name, [x for x in overrides if "sampler." not in x], config_dir, complete=False)
            except UserError as faults:
                raise UserError(error.exit_code, f"{error}\n{faults}") from None
        raise


def _run_sweep_job(task: Task, config_name: str, config_dir: str | None, config: DictConfig) -> float | None:
    """Compose and run one job of a sweep, perhaps in another process."""
    overrides = list(HydraConfig.get().overrides.task)
    trust_overrides(overrides)  # all were typed, for a sweep resumes no run
    return task(compose_configs(config_name, overrides, config_dir)[0])
