"""Trial runs of `train` that leave no folder behind: plan=true and trainer.fast_dev_run=true."""

import signal
import sys

from omegaconf import DictConfig

from diffusion_lit.runs.warm_start import resolve_training_config
from diffusion_lit.training.precision import resolve_precision


def is_trial(config: DictConfig) -> bool:
    """Return whether a configuration requests a trial run."""
    return config.plan or bool(config.trainer.fast_dev_run)


def run_trial(config: DictConfig) -> None:
    """Print the plan of a run, or do one step of it.

    SIGINT ends it with exit code 130.
    """

    def stop(number: int, frame: object) -> None:  # Lightning would turn a KeyboardInterrupt into exit code 1
        print("stopped; nothing is left behind", file=sys.stderr)
        sys.exit(128 + number)

    signal.signal(signal.SIGINT, stop)
    resolved, source = resolve_training_config(config)
    resolved["strategy"] = resolve_precision(resolved["strategy"], bool(resolved["resume"]))
    if config.plan:
        from diffusion_lit.training.plan import plan

        plan(resolved, source, sys.argv[1:])
    else:
        from diffusion_lit.training.train_rank import fast_dev_run

        fast_dev_run(resolved, source)
