"""Hydra's own flags and errors: each flag works or is refused by name, and what Hydra raises is one message."""

import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from diffusion_lit.config.overrides import did_you_mean
from diffusion_lit.system.errors import ConfigError, Exit, OutputError, report_errors

FULL_ERROR = "HYDRA_FULL_ERROR"  # environment variable with which Hydra raises its errors instead of printing them


def check_flags(args: Namespace) -> None:
    """Raise UserError (exit 2) for flags of Hydra that exclude each other, or that a command cannot have."""
    modes = ("run", "multirun", "cfg", "info", "shell_completion")
    chosen = [f"--{mode.replace('_', '-')}" for mode in modes if getattr(args, mode)]
    faults = {
        f"{' and '.join(chosen)} exclude each other. Use one of them": len(chosen) > 1,
        "--resolve and --package: need --cfg. Add --cfg job": (args.resolve or args.package) and not args.cfg,
        "--config-name and --config-path: a command has one configuration. Use experiment=<name>, and "
        "--config-dir <folder> for files of your own": args.config_name or args.config_path,
        "--experimental-rerun: not supported. Use resume=<run>": args.experimental_rerun,
    }
    if args.shell_completion:
        kinds = ("install=", "uninstall=", "query=")
        is_one = len(args.overrides) == 1 and args.overrides[0].startswith(kinds)
        faults["--shell-completion: add one of install=<shell> and uninstall=<shell>"] = not is_one or (
            args.overrides[0].startswith("query=") and "COMP_LINE" not in os.environ
        )
    for fault, is_given in faults.items():
        if is_given:
            raise ConfigError(fault)


def render_config(config: DictConfig, package: str | None, resolve: bool) -> str:
    """Return a configuration, or the part of it that `package` names, as yaml.

    Raises:
        UserError: exit 2 if there is no such part, or if an interpolation cannot be
            resolved.
    """
    part = config if package in (None, "_global_") else OmegaConf.select(config, package, throw_on_missing=False)
    if not OmegaConf.is_dict(part):
        raise ConfigError(f"--package {package}: no such group{did_you_mean(package, list(config))}")
    try:
        return OmegaConf.to_yaml(part, resolve=resolve)
    except OmegaConfBaseException as error:
        raise ConfigError(f"--resolve: {str(error).splitlines()[0]}") from None


@contextmanager
def explain_hydra_errors() -> Iterator[Callable[[], None]]:
    """End the process with one message for an error of Hydra itself in the block.

    Yields:
        A function to call when the job begins, whose errors stay what they are. (A context, not
        a wrapper of the job: tracebacks stay short.)
    """
    has_begun = []
    os.environ[FULL_ERROR] = "1"
    try:
        yield lambda: has_begun.append(True)
    except (Exception, SystemExit) as error:
        if has_begun or getattr(error, "code", 1) == 0:
            raise
        if isinstance(error, SystemExit):
            sys.exit(int(Exit.CONFIG))  # Hydra has printed why
        with report_errors():
            if isinstance(error, OSError):
                raise OutputError(f"{error.filename}: {error.strerror}") from None
            text = str(error).partition("Config search path")[0].strip() or type(error).__name__
            raise ConfigError(f"hydra: {text}") from None
    finally:
        os.environ.pop(FULL_ERROR, None)


def start_hydra(decorate: Callable, job: Callable[[DictConfig], object]) -> Callable[[], None]:
    """Return a function that runs the jobs of a sweep by Hydra.

    Args:
        decorate: `hydra.main` with its arguments.
        job: what to run.
    """

    def start() -> None:
        with explain_hydra_errors() as begin:

            def run_job(config: DictConfig) -> object:
                begin()
                return job(config)

            decorate(run_job)()

    return start
