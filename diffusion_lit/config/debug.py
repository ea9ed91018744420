"""`debug=on`: any recipe in seconds on a CPU, along the same path, on pictures made on the spot."""

from omegaconf import DictConfig, OmegaConf

from diffusion_lit.config.compose import CONF
from diffusion_lit.config.overrides import as_word, value_of

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
NARROW = {  # keys of networks, those that there are
    "model.block_out_channels": lambda widths: [8] * len(widths),
    "model.norm_num_groups": lambda groups: 4,
    "model.attn_norm_num_groups": lambda groups: 4,
    "model.attention_head_dim": lambda size: 8,
    "model.layers_per_block": lambda layers: 1,
    "model.features": lambda features: 8,
    "model.attention_levels": lambda levels: list(levels)[-1:],
    "model.widths": lambda widths: [8] * len(widths),
    "model.width": lambda width: 16,
    "model.heads": lambda heads: 2,
    "model.depth": lambda depth: 2,
    "model.take": lambda take: "narrow",
}


def with_debug(overrides: list[str], config: DictConfig) -> list[str]:
    """The words of a command line with those that make it small before them; what they name themselves is left.

    Args:
        overrides: without `debug=on`.
        config: what they come to; values may be missing.
    """
    named = {word.partition("=")[0].lstrip("+") for word in overrides}
    words = {key: value for key, value in SHORT.items() if _has(config, key)}
    found = {key: OmegaConf.select(config, key) for key in NARROW}
    words |= {key: NARROW[key](value) for key, value in found.items() if value is not None}
    words |= {"logger": "none"}
    if value_of("max_epochs", overrides) is not None:
        del words["max_steps"]
    of_any_data = {f"data.{key}" for key in OmegaConf.load(CONF / "data" / "synthetic.yaml")}
    own_data = "data" in named or any(key.startswith("data.") for key in named - of_any_data)
    if not own_data and not config.data._target_.endswith(".Digits"):
        kept = {
            key: config.data[key] for key in ("image_size", "channels", "num_classes", "labels") if key in config.data
        }
        if config.data.get("label_column") == "none":
            kept["labels"] = "none"
        words |= {"data": "synthetic"} | {f"data.{key}": value for key, value in kept.items()}
    return [*[as_word(key, value) for key, value in words.items() if key not in named], *overrides]


def narrowed(architecture: dict) -> dict:
    """The arguments of a network, those that make it wide small."""
    small = {key.removeprefix("model."): change for key, change in NARROW.items()}
    return {k: small[k](value) if k in small and value is not None else value for k, value in architecture.items()}


def _has(config: DictConfig, key: str) -> bool:
    """Whether there is such a key, be it null: `sampler.steps=null` stands for all timesteps."""
    group, _, last = key.rpartition(".")
    return last in (OmegaConf.select(config, group) if group else config)
