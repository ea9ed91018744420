"""From a command line to its job, or to every job of a sweep; all of it is checked before the first one starts."""

import sys
import threading
from collections.abc import Callable
from pathlib import Path

from hydra import main as hydra_main
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from diffusion_lit.cli import summary
from diffusion_lit.cli.sweep import Task, plan_sweep, run_sweep
from diffusion_lit.config.compose import compose_configs, compose_hydra_settings
from diffusion_lit.config.groups import CONF
from diffusion_lit.config.overrides import format_override
from diffusion_lit.config.reference import render_help
from diffusion_lit.config.secrets import refuse_secrets
from diffusion_lit.config.targets import trust_overrides
from diffusion_lit.system import console
from diffusion_lit.system.errors import PENDING_SIGNALS, report_errors

Check = Callable[[DictConfig], None]
Prepare = Callable[[list[str], str | None], list[str]]  # (overrides, --config-dir) -> overrides
Summarize = Callable[[Path, DictConfig], None]  # (folder of a sweep, configuration of its first job)


def launch(
    config_name: str,
    task: Task,
    prepare: Prepare,
    check: Check,
    summarize: Summarize = lambda sweep, config: summary.summarize_sweep(sweep),
    is_trial: Check = lambda config: False,
    trial: Check | None = None,
) -> None:
    """Run a command: `prepare` the overrides, check all of them, then Hydra runs `task`.

    A UserError ends the command with its message and exit code. Nothing is created
    before the checks pass. Where `is_trial` holds, `trial` runs without Hydra's folder.
    """
    PENDING_SIGNALS.clear()
    args, unknown_flags = get_args_parser().parse_known_intermixed_args()
    if args.help:
        print(render_help(config_name, args.overrides))
        return
    overrides, sweep, configs = unknown_flags + args.overrides, None, []
    with report_errors():
        refuse_secrets(sys.argv[1:])
        if not (args.hydra_help or args.info or args.shell_completion):
            trust_overrides(args.overrides)  # and no words that `prepare` reads from a run folder
            overrides = prepare(overrides, args.config_dir)
            multirun = args.multirun or "hydra.mode=MULTIRUN" in overrides
            configs = compose_configs(config_name, overrides, args.config_dir, complete=not args.cfg, multirun=multirun)
            if multirun and not args.cfg:
                sweep, configs = plan_sweep(config_name, overrides, args.config_dir, configs)
                overrides = [*overrides, format_override("hydra.sweep.dir", sweep.folder)]
            for config in configs if not args.cfg else []:
                check(config)
    if args.cfg == "job" and not args.package:  # Hydra's own would show what belongs to no choice
        print(OmegaConf.to_yaml(configs[0], resolve=args.resolve), end="")
        return
    threading.excepthook = console.log_thread_exception
    if configs and not args.cfg and is_trial(configs[0]):
        settings = compose_hydra_settings(config_name, overrides, args.config_dir)
        console.configure_logging_without_file(OmegaConf.to_container(settings.job_logging))
        with report_errors():
            trial(configs[0])
        return
    sys.argv[1:] = [*overrides, *[word for word in sys.argv[1:] if word not in args.overrides]]
    start = hydra_main(version_base="1.3", config_path=str(CONF), config_name=config_name)

    def checked() -> DictConfig:
        """Return the configuration that was checked, which is Hydra's without what belongs to no choice."""
        overrides = list(HydraConfig.get().overrides.task)
        if sweep:  # this may be another process, and no run is resumed by a sweep
            trust_overrides(overrides)
        return compose_configs(config_name, overrides, args.config_dir)[0]

    if sweep:
        sys.exit(run_sweep(start, lambda _: task(checked()), sweep, lambda _: summarize(sweep.folder, configs[0])))

    def job(config: DictConfig) -> None:
        with report_errors():
            task(checked())

    start(job)()
