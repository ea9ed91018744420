"""Whether every value of a composed configuration is one that its key can have; all faults at once."""

import copy
from collections.abc import Iterator
from typing import NamedTuple

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from diffusion_lit.config.constraints import find_conflicts
from diffusion_lit.config.overrides import did_you_mean
from diffusion_lit.config.schema import FIXED, MAPPINGS, is_open, value_fault
from diffusion_lit.config.secrets import WHERE_TO_PUT_IT, is_secret
from diffusion_lit.config.targets import argument_fault, target_fault, target_names
from diffusion_lit.config.trainer_arguments import trainer_fault

MISSING = "???"


class Choices(NamedTuple):
    """What the choices of a command line come to, before single values are set."""

    config: DictConfig
    defaults: dict[str, object]  # every key there is, with its value in the yaml files, experiments aside
    types: dict[str, str]  # of these keys, empty where the yaml files have none
    chosen: dict[str, str | None]  # group to name


def apply_overrides(
    choices: Choices, overrides: list[Override], broken: set[str], complete: bool
) -> tuple[DictConfig, list[str]]:
    """The configuration with its values set as Hydra sets them, and everything that is
    wrong with it.

    Of keys and groups whose word on the command line was `broken` nothing is said: they
    would have another value.
    """
    config, faults = copy.deepcopy(choices.config), {}
    for override in overrides:
        key = override.key_or_group
        if fault := _override_fault(override, config, choices):
            faults[key] = fault
        elif override.is_delete():
            group, _, name = key.rpartition(".")
            with open_dict(config):
                del OmegaConf.select(config, group)[name]
        else:
            OmegaConf.update(config, key, override.value(), force_add=True)
    values = flatten(config, faults)
    faults |= {key: fault for key, value in values.items() if (fault := _fault(key, value, choices))}
    unsure = {key for key in faults | values if broken & {key, key.split(".")[0]}}
    faults = _target_faults(values) | faults
    missing = {key for key, value in values.items() if value == MISSING}
    good = {key: value for key, value in values.items() if key not in faults.keys() | missing | unsure}
    silent = unsure | (set() if complete else missing)
    return config, [fault for key, fault in faults.items() if key not in silent] + find_conflicts(good)


def _override_fault(override: Override, config: DictConfig, choices: Choices) -> str | None:
    """Return why an override cannot be applied, or None. New keys, with +, are for open groups only."""
    key, new = override.key_or_group, override.is_add() or override.is_force_add()
    known = key in choices.defaults
    if not is_open(key):
        written = f"{override.input_line}: write {override.input_line.lstrip('+')}"
        return _unknown(key, choices) if not known else written if new else None
    if key.startswith("trainer.") and (fault := trainer_fault(key.partition(".")[2])):
        return fault
    if known and override.is_add():
        return f"{override.input_line}: write {override.input_line.lstrip('+')}"
    exists = known or OmegaConf.select(config, key, throw_on_missing=False) is not None
    return None if exists or new else f"{_unknown(key, choices)}; add a new one by +{key}="


def _target_faults(values: dict[str, object]) -> dict[str, str]:
    """Return a fault for every nested `_target_` that may not be built."""
    found = [(key, name) for key, value in values.items() for name in target_names({key.rpartition(".")[2]: value})]
    return {key: fault for key, name in found if (fault := target_fault(name))}


def flatten(node: DictConfig, faults: dict[str, str], prefix: str = "") -> dict[str, object]:
    """Dotted key to value, interpolations resolved; those that cannot be go to `faults`."""
    values = {}
    for key in node:
        name = f"{prefix}{key}"
        try:
            value = MISSING if OmegaConf.is_missing(node, key) else node[key]
            if OmegaConf.is_list(value) or (name in MAPPINGS and OmegaConf.is_dict(value)):
                value = OmegaConf.to_container(value, resolve=True)
        except InterpolationToMissingValueError:
            continue  # the key that is missing is told of
        except OmegaConfBaseException as error:
            faults[name] = f"{name}={node._get_node(key)._value()}: {str(error).splitlines()[0]}"
            continue
        values |= flatten(value, faults, f"{name}.") if OmegaConf.is_dict(value) else {name: value}
    return values


def _fault(key: str, value: object, choices: Choices) -> str | None:
    """A key that an experiment made up, a value that is missing or cannot be."""
    experiment = f"experiment={choices.chosen.get('experiment')}"
    if key.split(".")[0] == "experiment":
        return f"{experiment}: its first line must be # @package _global_"
    if key in choices.chosen:
        return f"{experiment}: {key} is chosen under `defaults:` with `- override /{key}: {value}`"
    if key.startswith("trainer.") and (fault := trainer_fault(key.partition(".")[2])):
        return f"{experiment}: {fault}"
    if key not in choices.defaults and not is_open(key):
        return f"{experiment}: {_unknown(key, choices)}"
    if value == MISSING:
        return f"{key} needs a value: add {key}=..."
    if is_secret(str(value)):
        return f"{key}: looks like a secret: {WHERE_TO_PUT_IT}"
    return value_fault(key, value, choices.defaults.get(key), choices.types.get(key, ""))


def _unknown(key: str, choices: Choices) -> str:
    """The nearest keys; in a group that exists those of the group, and the same word elsewhere."""
    group, _, last = key.rpartition(".")
    if group not in choices.chosen:
        return f"{key}: no such key{did_you_mean(key, [*choices.chosen, *choices.defaults]) or '; --help lists them'}"
    own = [name for name in choices.defaults if name.startswith(f"{group}.") and not name.endswith(FIXED)]
    alike = own + [name for name in choices.defaults if name.split(".")[-1] == last]
    listed = ", ".join(name.removeprefix(f"{group}.") for name in own) or "no keys"
    return f"{key}: no such key{did_you_mean(key, alike)}; {group}={choices.chosen[group]} has {listed}"


def argument_faults(config: DictConfig, choices: Choices) -> Iterator[str]:
    """Yield the arguments that a class does not take, for leafs that are not as the yaml files have them."""
    tree = OmegaConf.to_container(config, resolve=True)
    data = tree.get("data", {})
    leafs = {f"callbacks.{name}": leaf for name, leaf in (tree.get("callbacks") or {}).items()}
    leafs |= {f"data.transforms[{k}]": leaf for k, leaf in enumerate(data.get("transforms", ()))}
    leafs |= {f"data.{key}": data[key] for key in ("dataset", "val_dataset") if isinstance(data.get(key), dict)}
    for group in ("optimizer", "logger"):
        keys = {key.partition(".")[2] for key in choices.defaults if key.startswith(f"{group}.")}
        leaf = tree.get(group, {})
        if keys != leaf.keys() or leaf.get("_target_") != choices.defaults.get(f"{group}._target_"):
            leafs[group] = leaf
    for where, leaf in leafs.items():
        if fault := argument_fault(where, leaf):
            yield fault
