"""`debug=on`: any recipe in seconds on a CPU, along the same path, on pictures made on the spot."""

from omegaconf import DictConfig, OmegaConf

from diffusion_lit.config.groups import CONF
from diffusion_lit.config.overrides import format_override, read_override
from diffusion_lit.config.targets import locate

SHORT = {
    "name": "debug",
    "max_steps": 2,
    "global_batch_size": 4,
    "log_every": 1,
    "val_every": 1,
    "sample_every": 1,
    "checkpoint_every": 1,
    "ema.update_every": 1,
    "strategy.accumulate": 1,
    "diffusion.num_train_timesteps": 20,
    "sampler.steps": 2,
    "sampler.batch_size": 16,
    "init_from": None,
}


def add_debug_overrides(overrides: list[str], config: DictConfig) -> list[str]:
    """The words of a command line with those that make it small before them; what they
    name themselves is left.

    Args:
        overrides: without `debug=on`.
        config: what they come to; values may be missing.
    """
    named = {word.partition("=")[0].lstrip("+") for word in overrides}
    words = {key: value for key, value in SHORT.items() if _has(config, key)}
    network = locate(config.model._target_)
    if hasattr(network, "debug_arguments"):
        small = network.debug_arguments(OmegaConf.to_container(config.model, resolve=True))
        words |= {f"model.{key}": value for key, value in small.items()}
    words |= {"logger": "none"}
    if read_override("max_epochs", overrides) is not None:
        del words["max_steps"]
    of_any_data = {f"data.{key}" for key in OmegaConf.load(CONF / "data" / "synthetic.yaml")}
    own_data = "data" in named or any(key.startswith("data.") for key in named - of_any_data)
    if not own_data and not config.data._target_.endswith(".Digits"):
        keys = ("image_size", "channels", "num_classes", "labels")
        kept = {key: config.data[key] for key in keys if key in config.data}
        if config.data.get("label_column") == "none":
            kept["labels"] = "none"
        words |= {"data": "synthetic"} | {f"data.{key}": value for key, value in kept.items()}
    return [*[format_override(key, value) for key, value in words.items() if key not in named], *overrides]


def _has(config: DictConfig, key: str) -> bool:
    """Whether there is such a key, be it null: `sampler.steps=null` stands for all timesteps."""
    group, _, last = key.rpartition(".")
    return last in (OmegaConf.select(config, group) if group else config)
