"""The yaml files of `conf/`: commands, config groups and their choices, read without composing."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from diffusion_lit.config.schema import Key, read_group_keys, read_keys
from diffusion_lit.system.errors import ConfigError

_PACKAGE = Path(__file__).parents[1]
CONF = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"  # wheel, checkout


def list_groups(config_name: str, folders: Sequence[Path] = (CONF,)) -> dict[str, list[str]]:
    """Return the config groups of a command and their choices, the default first.

    Args:
        config_name: name of the command.
        folders: `CONF`, and the folder of --config-dir if there is one.
    """
    groups = {}
    for group, default in _read_defaults(config_name).items():
        names = sorted({file.stem for folder in folders for file in folder.glob(f"{group}/*.yaml")})
        groups[group] = sorted(names, key=lambda name: name != default)
    return groups


@cache
def _read_defaults(config_name: str) -> dict[str, str]:
    entries = OmegaConf.load(CONF / f"{config_name}.yaml").defaults
    return {group: name for entry in entries if isinstance(entry, DictConfig) for group, name in entry.items()}


def list_options(group: str) -> list[str]:
    """Return the choices of a config group, sorted."""
    return sorted(file.stem for file in CONF.glob(f"{group}/*.yaml"))


def read_option(group: str, name: str) -> dict:
    """Return `conf/<group>/<name>.yaml` as plain data.

    Raises:
        UserError: exit 2 if there is no such file.
    """
    if name not in list_options(group):
        raise ConfigError(f"{group}={name}: not found. Choose one of {', '.join(list_options(group))}")
    return OmegaConf.to_container(OmegaConf.load(CONF / group / f"{name}.yaml"))


def list_option_keys(group: str, name: str, folders: Sequence[Path] = (CONF,)) -> dict[str, Key]:
    """Return the keys of `group=name` with their types and meanings."""
    files = [folder / group / f"{name}.yaml" for folder in folders]
    file = next(file for file in files if file.exists())
    return read_group_keys(file, sorted((CONF / group).glob("*.yaml")))


def list_keys(config_name: str) -> list[str]:
    """Return the keys of a command and those of all choices of its config groups, dotted."""
    keys = list(read_keys(CONF / f"{config_name}.yaml"))
    for group, names in list_groups(config_name).items():
        if group != "experiment":
            keys += [group, *[f"{group}.{key}" for name in names for key in list_option_keys(group, name)]]
    return list(dict.fromkeys(keys))
