"""Overrides of `train` that stand for others: default experiment, published defaults, `debug=on`, length of a run."""

from collections.abc import Collection

from omegaconf import DictConfig, OmegaConf

from diffusion_lit.config.compose import compose_configs, compose_hydra_settings
from diffusion_lit.config.groups import CONF
from diffusion_lit.config.overrides import format_override, read_override
from diffusion_lit.config.targets import locate
from diffusion_lit.system.errors import ConfigError

PUBLISHED = {  # of a process chosen on the command line; weighting= and sampler= choose others
    "flow": {"weighting": "uniform", "sampler": "flow_euler"},  # Lipman et al. 2023, Esser et al. 2024
    "edm": {"weighting": "uniform", "sampler": "heun"},  # Karras et al. 2022
}
TINY = {  # the run of `debug=on`, on synthetic images, in seconds on a CPU
    "name": "debug",
    "run_dir": "outputs/debug/${now:%Y-%m-%d_%H-%M-%S}-${hex:4}",  # also with name=: resume=auto must not find it
    "max_steps": 2,
    "global_batch_size": 4,
    **dict.fromkeys(("log_every", "val_every", "sample_every", "checkpoint_every"), 1),
    **dict.fromkeys(("ema.update_every", "lr_schedule.warmup_steps", "strategy.accumulate"), 1),
    "diffusion.num_train_timesteps": 20,
    "sampler.steps": 2,
    "sampler.batch_size": 16,
    "init_from": None,
}


def expand_overrides(overrides: list[str], config_dir: str | None) -> list[str]:
    """Return the overrides with the default experiment, `debug=on` and the length of the run expanded.

    Raises:
        UserError: exit 2 for two lengths of one run.
    """
    rest = add_defaults(overrides)
    if read_override("debug", overrides) == "on":
        rest = add_debug_overrides(rest, compose_configs("train", rest, config_dir, complete=False)[0])
    return merge_run_length(rest)


def take_data_of_experiment(overrides: list[str], config_dir: str | None, own_keys: Collection[str]) -> list[str]:
    """Return the overrides of `audit` for those of `train` with `experiment=`: the data and the network.

    Args:
        overrides: of the command line; without `experiment=` they are returned as they are.
        config_dir: value of `--config-dir`.
        own_keys: keys that only `audit` has.
    """
    if not read_override("experiment", overrides):
        return overrides
    own = [override for override in overrides if override.partition("=")[0] in own_keys]
    recipe = [override for override in overrides if override not in own]
    config = compose_configs("train", recipe, config_dir, complete=False, multirun=False)[0]
    choices = compose_hydra_settings("train", recipe, config_dir).runtime.choices
    for group in ("data", "model"):
        defaults_of = ["experiment=none", f"{group}={choices[group]}"]
        plain = compose_configs("train", defaults_of, config_dir, complete=False, multirun=False)[0][group]
        values, defaults = OmegaConf.to_container(config[group]), OmegaConf.to_container(plain)
        changed = [(key, value) for key, value in values.items() if value != defaults.get(key)]
        own += [f"{group}={choices[group]}", *[format_override(f"{group}.{key}", value) for key, value in changed]]
    return own


def merge_run_length(overrides: list[str]) -> list[str]:
    """Let `max_steps` on the command line win over `max_epochs` of an experiment.

    Raises:
        UserError: exit 2 if both are on the command line.
    """
    keys = {override.partition("=")[0] for override in overrides}
    if "max_steps" in keys and read_override("max_epochs", overrides) is not None:
        raise ConfigError("max_steps and max_epochs: both set the length of the run. Use one of the two")
    wins = {"max_steps", "experiment"} <= keys and "max_epochs" not in keys
    return [*overrides, "max_epochs=null"] if wins else overrides


def add_defaults(overrides: list[str]) -> list[str]:
    """Add what other choices imply: `experiment=none` for other data, the published weighting and sampler of a process.

    Choices of the overrides stay.
    """
    values = {override.partition("=")[0]: override.partition("=")[2] for override in overrides}
    implied = PUBLISHED.get(values.get("diffusion", ""), {})
    if values.get("data", "digits") != "digits":
        implied = {"experiment": "none"} | implied
    return [*[f"{key}={value}" for key, value in implied.items() if key not in values], *overrides]


def add_debug_overrides(overrides: list[str], config: DictConfig) -> list[str]:
    """Return the overrides with those of a tiny run before them.

    Keys that they set are left alone.

    Args:
        overrides: overrides of `train` without `debug=on`.
        config: their composed configuration; values may be missing.
    """
    keys = {override.partition("=")[0].lstrip("+") for override in overrides}
    values = {key: value for key, value in TINY.items() if _has_key(config, key)}
    network = locate(config.model._target_)
    if config.get("distill"):  # a student has network and process of its teacher
        values = {key: value for key, value in values.items() if not key.startswith("diffusion.")}
    elif hasattr(network, "debug_arguments"):
        small = network.debug_arguments(OmegaConf.to_container(config.model, resolve=True))
        values |= {f"model.{key}": value for key, value in small.items()}
    values |= {"logger": "none"}
    if read_override("max_epochs", overrides) is not None:
        del values["max_steps"]
    common = {f"data.{key}" for key in OmegaConf.load(CONF / "data" / "synthetic.yaml")}
    has_data = "data" in keys or any(key.startswith("data.") for key in keys - common)
    if not has_data and not config.data._target_.endswith(".Digits"):
        names = ("image_size", "channels", "num_classes", "labels")
        values |= {"data": "synthetic"} | {f"data.{name}": config.data[name] for name in names if name in config.data}
        if config.get("text_encoder"):  # synthetic images have no captions
            values |= {"text_encoder": "none", "preview_prompts": None}
        if config.data.get("label_column") == "none":
            values["data.labels"] = "none"
    added = {key: value for key, value in values.items() if key not in keys}
    if "run_dir" in added:  # with interpolations, which format_override escapes
        overrides = [f"run_dir={added.pop('run_dir')}", *overrides]
    return [*[format_override(key, value) for key, value in added.items()], *overrides]


def _has_key(config: DictConfig, key: str) -> bool:
    """Return whether a key exists, even if it is null."""
    group, _, last = key.rpartition(".")
    return last in (OmegaConf.select(config, group) if group else config)
