"""Check of a composed configuration: keys, types, ranges and classes, all faults at once."""

import copy
import shlex
from collections.abc import Iterator
from typing import NamedTuple

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from diffusion_lit.config.constraints import find_conflicts
from diffusion_lit.config.groups import list_option_keys, list_options
from diffusion_lit.config.overrides import did_you_mean, format_override
from diffusion_lit.config.schema import FIXED, MAPPINGS, is_open, value_fault
from diffusion_lit.config.secrets import SECRET_ADVICE, is_secret
from diffusion_lit.config.targets import argument_fault, target_fault, target_names

MISSING = "???"
OTHER_NAMES = {  # keys that other projects have -> what to do here
    **dict.fromkeys(("latent", "vae", "autoencoder"), "Networks see pixels: choose data.image_size= and model="),
    **dict.fromkeys(("text", "captions", "caption"), "Use text_encoder=words in train, and prompt= in sample"),
    "prompt": "Use prompt= in sample, and preview_prompts= in train",
    **dict.fromkeys(("fp16", "amp", "bf16", "mixed_precision"), "Use strategy.precision=16-mixed or bf16-mixed"),
    **dict.fromkeys(("gpus", "num_gpus", "devices"), "Use strategy=ddp strategy.devices=<number>"),
    **dict.fromkeys(("num_workers", "workers"), "Images are in memory or a memory map: no workers are needed"),
    **dict.fromkeys(("wandb", "log_with", "tensorboard"), "Use logger=wandb, tensorboard or csv"),
    **dict.fromkeys(("learning_rate", "train_lr"), "Use optimizer.lr="),
    **dict.fromkeys(("resolution", "img_size", "size"), "Use data.image_size="),
    **dict.fromkeys(("train_data_dir", "data_dir", "dataset_path"), "Use data=image_folder data.root=<folder>"),
    **dict.fromkeys(("cfg", "cfg_scale", "guidance"), "Use guidance_scale="),
    **dict.fromkeys(("label", "labels", "class_labels"), "Use classes=[<name or number>, ...]"),
    **dict.fromkeys(("n", "n_samples", "num_samples", "count"), "Use num_images="),
    **dict.fromkeys(("output", "output_dir", "out_dir"), "Use run_dir= in train, out= elsewhere"),
}


class Choices(NamedTuple):
    """A configuration after its groups are chosen, before single values are set."""

    config: DictConfig
    defaults: dict[str, object]  # dotted key -> value in the yaml files, without the experiment
    types: dict[str, str]  # dotted key -> type in the yaml files
    chosen: dict[str, str | None]  # config group -> choice


def apply_overrides(
    choices: Choices, overrides: list[Override], faulty_keys: set[str], complete: bool
) -> tuple[DictConfig, list[str]]:
    """Set values as Hydra does, and check the result.

    Args:
        choices: configuration and its schema.
        overrides: overrides of single values.
        faulty_keys: keys and groups with a faulty override; what depends on them is
            not reported, for it would have another value.
        complete: whether keys without a value are faults.

    Returns:
        The configuration, and one line for each fault.
    """
    config, faults = copy.deepcopy(choices.config), {}
    for override in overrides:
        key = override.key_or_group
        if fault := _find_override_fault(override, config, choices):
            faults[key] = fault
        elif override.is_delete():
            group, _, name = key.rpartition(".")
            with open_dict(config):
                del OmegaConf.select(config, group)[name]
        else:
            try:
                OmegaConf.update(config, key, override.value(), force_add=True)
            except OmegaConfBaseException as error:
                faults[key] = f"{override.input_line}: {_explain_interpolation(key, override.value(), error)}"
    values = flatten(config, faults)
    typed = {one.key_or_group: getattr(one, "interval", one.input_line.partition("=")[2]) for one in overrides}
    for key in [key for key in values if key not in faults]:
        if fault := _find_fault(key, values[key], choices, typed.get(key)):
            faults[key] = fault
    faults = _find_target_faults(values) | faults
    unsure = {key for key in faults | values if faulty_keys & {key, key.split(".")[0]}}
    missing = {key for key, value in values.items() if value == MISSING}
    good = {key: value for key, value in values.items() if key not in faults.keys() | missing | unsure}
    silent = unsure | (set() if complete else missing)
    return config, [fault for key, fault in faults.items() if key not in silent] + find_conflicts(good)


def _find_override_fault(override: Override, config: DictConfig, choices: Choices) -> str | None:
    """Return why an override cannot be applied, or None.

    Open nodes alone take new keys, by +key.
    """
    key, text = override.key_or_group, override.input_line
    is_new, is_known = override.is_add() or override.is_force_add(), key in choices.defaults
    if key.startswith("trainer.") and (fault := trainer_fault(key.partition(".")[2])):
        return fault
    if is_known and (override.is_add() or (is_new and not is_open(key))):
        return f"{text}: the key exists. Write {text.lstrip('+')}"
    if is_known or (is_open(key) and (is_new or OmegaConf.select(config, key, throw_on_missing=False) is not None)):
        return None
    return _explain_unknown(key, choices) + (f". Add a new argument with +{key}=" if is_open(key) else "")


def _find_target_faults(values: dict[str, object]) -> dict[str, str]:
    """Return a fault for every nested `_target_` that may not be built."""
    targets = [(key, name) for key, value in values.items() for name in target_names({key.rpartition(".")[2]: value})]
    return {key: fault for key, name in targets if (fault := target_fault(name))}


def flatten(node: DictConfig, faults: dict[str, str], prefix: str = "") -> dict[str, object]:
    """Return dotted key -> resolved value.

    Interpolations that fail are added to `faults`.
    """
    values = {}
    for key in node:
        name = f"{prefix}{key}"
        try:
            value = MISSING if OmegaConf.is_missing(node, key) else node[key]
            if OmegaConf.is_list(value) or (name in MAPPINGS and OmegaConf.is_dict(value)):
                value = OmegaConf.to_container(value, resolve=True)
        except InterpolationToMissingValueError:
            continue  # the missing key is reported itself
        except OmegaConfBaseException as error:
            text = node._get_node(key)._value()
            faults[name] = f"{name}={text}: {_explain_interpolation(name, text, error)}"
            continue
        values |= flatten(value, faults, f"{name}.") if OmegaConf.is_dict(value) else {name: value}
    return values


def _explain_interpolation(key: str, text: object, error: Exception) -> str:
    """Return why ${...} in a value cannot be resolved, and how to write it as text."""
    why = str(error).splitlines()[0]
    if not isinstance(text, str) or "${" not in text:
        return why
    return f"{why}. If it is text, write {shlex.quote(format_override(key, text))}"


def _find_fault(key: str, value: object, choices: Choices, typed: str | None) -> str | None:
    """Return the fault of a key that an experiment sets, or of a value that was `typed` so."""
    experiment = f"experiment={choices.chosen.get('experiment')}"
    if key.split(".")[0] == "experiment":
        return f"{experiment}: its first line must be # @package _global_"
    if key in choices.chosen:
        return f"{experiment}: {key} is a config group. Choose it under `defaults:` with `- override /{key}: {value}`"
    if key.startswith("trainer.") and (fault := trainer_fault(key.partition(".")[2])):
        return f"{experiment}: {fault}"
    if key not in choices.defaults and not is_open(key):
        return f"{experiment}: {_explain_unknown(key, choices)}"
    if value == MISSING:
        return f"{key}: needs a value. Add {key}=..."
    if is_secret(str(value)):
        return f"{key}: {SECRET_ADVICE}"
    return value_fault(key, value, choices.defaults.get(key), choices.types.get(key, ""), typed)


def _explain_unknown(key: str, choices: Choices) -> str:
    """Return that a key does not exist, with similar keys and, in a group, the keys of the group."""
    group, _, last = key.rpartition(".")
    if key in OTHER_NAMES:
        return f"{key}: no such key. {OTHER_NAMES[key]}"
    if group and group.split(".")[0] not in choices.chosen and (close := did_you_mean(group, list(choices.chosen))):
        return f"{key}: no such group{close}"
    if group not in choices.chosen:
        return f"{key}: no such key{did_you_mean(key, [*choices.chosen, *choices.defaults]) or '. See --help'}"
    own = [name for name in choices.defaults if name.startswith(f"{group}.") and not name.endswith(FIXED)]
    alike = own + [name for name in choices.defaults if name.split(".")[-1] == last]
    listed = ", ".join(name.removeprefix(f"{group}.") for name in own) or "no keys"
    others = [name for name in list_options(group) if last in list_option_keys(group, name)]
    hint = f". {group}={' or '.join(sorted(others, key='image_folder'.__ne__)[:2])} has it" if others else ""
    return f"{key}: no such key{did_you_mean(key, alike)}{hint}. {group}={choices.chosen[group]} has {listed}"


def find_argument_faults(config: DictConfig, choices: Choices) -> Iterator[str]:
    """Yield the faulty arguments of classes that the user chose or gave other arguments.

    The classes are imported for this, and torch with them.
    """
    tree = OmegaConf.to_container(config, resolve=True)
    data = tree.get("data", {})
    leaves = {f"callbacks.{name}": leaf for name, leaf in (tree.get("callbacks") or {}).items()}
    leaves |= {f"data.transforms[{k}]": leaf for k, leaf in enumerate(data.get("transforms", ()))}
    leaves |= {f"data.{key}": data[key] for key in ("dataset", "val_dataset") if isinstance(data.get(key), dict)}
    for group in ("optimizer", "logger"):
        keys = {key.partition(".")[2] for key in choices.defaults if key.startswith(f"{group}.")}
        leaf = tree.get(group, {})
        if keys != leaf.keys() or leaf.get("_target_") != choices.defaults.get(f"{group}._target_"):
            leaves[group] = leaf
    for where, leaf in leaves.items():
        if fault := argument_fault(where, leaf):
            yield fault


OWNED = {  # arguments of lightning.Trainer that diffusion_lit sets -> what to use instead
    "max_steps": "Use max_steps",
    "max_epochs": "Use max_epochs",
    "accelerator": "Use strategy.accelerator",
    "devices": "Use strategy.devices",
    "num_nodes": "Use strategy.num_nodes",
    "precision": "Use strategy.precision",
    "strategy": "Use strategy=single, dp or ddp",
    "accumulate_grad_batches": "Use strategy.accumulate",
    "logger": "Use logger=",
    "callbacks": "Use +callbacks.<name>._target_=",
    "plugins": "Use strategy.precision for precision; checkpoint files and processes are set up by diffusion_lit",
    "val_check_interval": "Use val_every",
    "check_val_every_n_epoch": "Use val_every",
    "num_sanity_val_steps": "Use trainer.fast_dev_run",
    "enable_checkpointing": "Use checkpoint_every",
    "default_root_dir": "Use run_dir",
    "use_distributed_sampler": "Use strategy=ddp, which gives each process its share of every batch",
    "overfit_batches": "Use trainer.limit_train_batches",
    "reload_dataloaders_every_n_epochs": "Use data.streaming where the source has it",
    "barebones": "Use plan=true to measure speed",
    "log_every_n_steps": "Use log_every",
    "enable_progress_bar": "The progress bar is drawn on terminals only",
    "enable_model_summary": "The summary is part of the first lines of a run",
}
ALLOWED = (  # arguments of lightning.Trainer that `trainer.<name>` can set
    "fast_dev_run", "limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches",
    "max_time", "min_epochs", "min_steps", "gradient_clip_val", "gradient_clip_algorithm", "deterministic", "benchmark",
    "inference_mode", "detect_anomaly", "profiler", "sync_batchnorm", "enable_autolog_hparams", "model_registry",
)  # fmt: skip


def trainer_fault(name: str) -> str | None:
    """Return why `trainer.<name>` cannot be set, or None if it can."""
    if name in OWNED:
        return f"trainer.{name}: set by diffusion_lit. {OWNED[name]}"
    if name not in ALLOWED:
        close = did_you_mean(f"trainer.{name}", [f"trainer.{known}" for known in (*ALLOWED, *OWNED)])
        return f"trainer.{name}: lightning.Trainer has no such argument{close}"
    return None
