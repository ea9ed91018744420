"""Check a request of `visualize` against the run or the training configuration, without torch."""

import sys
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from diffusion_lit.config.compose import compose_configs, sampler_faults
from diffusion_lit.config.constraints import find_conflicts
from diffusion_lit.config.expand import expand_overrides
from diffusion_lit.config.groups import CONF, read_option
from diffusion_lit.config.overrides import read_override
from diffusion_lit.runs import checkpoints, diffusers_format, run_dir, stored_config
from diffusion_lit.runs.resume import flatten_config
from diffusion_lit.system.errors import ConfigError

RUN_FIGURES = ("panels", "denoising", "samplers", "curves")  # need a trained run


def split_recipe(recipes: list[DictConfig], overrides: list[str], config_dir: str | None) -> list[str]:
    """Return the overrides of this command.

    Without `run=` all others are those of training configurations, which are
    composed and checked as by `train`.

    Args:
        recipes: the training configurations are appended to it.
        overrides: of the command line.
        config_dir: value of `--config-dir`.

    Raises:
        UserError: exit 2 for a sweep, or keys of a training configuration together
            with `run=`.
    """
    if {"-m", "--multirun", "hydra.mode=MULTIRUN"} & set(sys.argv):
        raise ConfigError("figures are drawn of one run or recipe at a time: leave --multirun out")
    keys, train = set(OmegaConf.load(CONF / "visualize.yaml")), OmegaConf.load(CONF / "train.yaml")
    own = [override for override in overrides if _group_of(override) in keys]
    others = [override for override in overrides if override not in own]
    if read_override("run", overrides) is None:
        recipes += compose_configs("train", expand_overrides(others, config_dir), config_dir)
        if len(recipes) > 1 and read_override("what", own) != ["losses"]:
            raise ConfigError("several values are several recipes, which only 'what=[losses]' compares")
        return own
    groups = {*train, *[group for entry in train.defaults if entry != "_self_" for group in entry]}
    refused = " ".join(override for override in others if _group_of(override) in groups)
    if refused:
        raise ConfigError(f"{refused}: the run has its own recipe. Leave run= out to draw another one")
    # all others are unknown keys, which are reported when the overrides are composed
    return diffusers_format.resolve_run(overrides)


def _group_of(override: str) -> str:
    return override.partition("=")[0].lstrip("+~").split(".")[0]


def check_figures(config: DictConfig) -> None:
    """Raise UserError (exit 2 or 4) if the figures cannot be drawn."""
    if config.images_per_class is None:
        raise ConfigError("images_per_class=null: needs a value")
    samplers = read_samplers(config)
    if config.run is None:
        if missing := sorted(set(config.what or ()) & set(RUN_FIGURES)):
            raise ConfigError(f"what=[{','.join(missing)}] needs a trained run: add run=...")
        return
    run_config = stored_config.read_model_config(run_dir.require_run_dir(config.run))
    if not config.what or {"panels", "denoising", "samplers"} & set(config.what):
        run = Path(config.run).expanduser()
        checkpoints.select_checkpoint(run, str(config.checkpoint), lambda message: None, config.weights)
    for name, sampler in samplers.items():
        faults = find_conflicts(flatten_config({"diffusion": run_config["diffusion"], "sampler": sampler}))
        faults += sampler_faults(sampler, run_config["diffusion"], name)
        if faults and (not config.what or "samplers" in config.what):
            raise ConfigError(f"samplers: {name}: {faults[0]}. Leave it out of samplers=[...]")


def read_samplers(config: DictConfig) -> dict[str, dict]:
    """Return the settings of the samplers to compare by name, those of the run's own sampler as stored."""
    stored = {}
    if config.run:
        run = stored_config.read_sampling_config(run_dir.require_run_dir(config.run), str(config.checkpoint))
        stored = run["sampler"]
        if run.get("distill"):  # a student has no other
            return {stored["name"]: stored}
    return {name: stored if name == stored.get("name") else read_option("sampler", name) for name in config.samplers}
