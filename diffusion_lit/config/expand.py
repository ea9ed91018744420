"""From a command line of `train` to the overrides it stands for: its experiment, its debug mode, its length."""

from diffusion_lit.config.compose import compose_configs
from diffusion_lit.config.debug import add_debug_overrides
from diffusion_lit.config.overrides import read_override
from diffusion_lit.system.errors import Exit, UserError


def expand_overrides(overrides: list[str], config_dir: str | None) -> list[str]:
    """Return the overrides with the default experiment, and with `debug=on` everything
    small.

    Raises:
        UserError: exit 2 for another value of `debug`, or two lengths of one run.
    """
    debug = read_override("debug", overrides)
    rest = add_default_experiment([word for word in overrides if not word.startswith("debug=")])
    if debug not in (None, "on", "off"):
        raise UserError(Exit.CONFIG, f"debug={debug}: must be on or off")
    if debug == "on":
        rest = add_debug_overrides(rest, compose_configs("train", rest, config_dir, complete=False)[0])
    return merge_run_length(rest)


def merge_run_length(overrides: list[str]) -> list[str]:
    """Let `max_steps` on the command line win over `max_epochs` of an experiment.

    Raises:
        UserError: exit 2 if both are on the command line.
    """
    keys = {word.partition("=")[0] for word in overrides}
    if "max_steps" in keys and read_override("max_epochs", overrides) is not None:
        raise UserError(Exit.CONFIG, "max_steps and max_epochs each say how long the run is: leave one of the two out")
    wins = {"max_steps", "experiment"} <= keys and "max_epochs" not in keys
    return [*overrides, "max_epochs=null"] if wins else overrides


def add_default_experiment(overrides: list[str]) -> list[str]:
    """Drop the default experiment, digits, if the overrides name other data but no experiment."""
    words = {word.partition("=")[0]: word.partition("=")[2] for word in overrides}
    if words.get("data", "digits") != "digits" and "experiment" not in words:
        return ["experiment=none", *overrides]
    return overrides
