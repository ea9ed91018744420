"""`debug=on`: any recipe at a tiny size on synthetic images, in seconds on a CPU."""

from omegaconf import DictConfig, OmegaConf

from diffusion_lit.config.groups import CONF
from diffusion_lit.config.overrides import format_override, read_override
from diffusion_lit.config.targets import locate

TINY = {
    "name": "debug",
    "run_dir": "outputs/debug/${now:%Y-%m-%d_%H-%M-%S}-${hex:4}",  # also with name=: resume=auto must not find it
    "max_steps": 2,
    "global_batch_size": 4,
    "log_every": 1,
    "val_every": 1,
    "sample_every": 1,
    "checkpoint_every": 1,
    "ema.update_every": 1,
    "lr_schedule.warmup_steps": 1,
    "strategy.accumulate": 1,
    "diffusion.num_train_timesteps": 20,
    "sampler.steps": 2,
    "sampler.batch_size": 16,
    "init_from": None,
}


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
    if hasattr(network, "debug_arguments"):
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
