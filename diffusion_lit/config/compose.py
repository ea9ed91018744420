"""The configuration of a command line: composed, and checked completely before anything
heavy is imported.

The yaml files are the schema: a key is one that they have, of the type that it has
there. `config/schema.py` adds ranges and choices, `config/constraints.py` what does not
go together.
"""

import copy
import inspect
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError, safe_load

from diffusion_lit.config.groups import CONF, list_groups, list_option_keys
from diffusion_lit.config.overrides import CONFIG_DIR, expand_sweeps
from diffusion_lit.config.schema import read_keys
from diffusion_lit.config.targets import build, locate, trust
from diffusion_lit.config.validation import Choices, apply_overrides, argument_faults, flatten
from diffusion_lit.system.errors import Exit, UserError

OmegaConf.register_new_resolver("hex", lambda digits: secrets.token_hex(8)[:digits], use_cache=True, replace=True)


# ---------------------------------------------------------------------------------------------------- composing


def compose_configs(
    config_name: str, overrides: list[str], config_dir: str | None = None, complete: bool = True, multirun: bool = True
) -> list[DictConfig]:
    """The configurations of a command line (one, or all of a sweep), every fault
    reported at once.

    Args:
        config_dir: a folder of more yaml files (`--config-dir`).
        complete: false lets keys without a value (???) pass.
        multirun: false refuses sweeps.

    Raises:
        UserError: exit 2, one line for each fault.
    """
    folders = [CONF] + ([_own_folder(config_dir)] if config_dir else [])
    groups = list_groups(config_name, folders)
    configs = []
    with _composing():
        lines, faults, broken = expand_sweeps(overrides, groups, multirun)
        broken |= set(groups) if "experiment" in broken else set()
        try:
            for line in lines:
                words = [word for word in line if word.key_or_group in groups or word.is_hydra_override()]
                choices = _choose(
                    config_name, tuple(groups), tuple(folders[1:]), tuple(word.input_line for word in words)
                )
                config, wrong = apply_overrides(choices, [word for word in line if word not in words], broken, complete)
                configs.append(config)
                faults += wrong
                if complete and not faults:  # the classes are imported for this, and torch with them
                    faults += argument_faults(config, choices)
                if "diffusion" in config:
                    faults += sampler_faults(config.sampler, config.diffusion, choices.chosen["sampler"], folders)
        except (HydraException, OmegaConfBaseException, YAMLError) as error:
            faults.append(str(error).partition("Config search path")[0].strip().replace("\n", "\n  "))
            if re.search(r"hydra/(launcher|sweeper)/", faults[-1]):
                faults.append('joblib, submitit and optuna are plugins: pip install "diffusion_lit[sweeps]"')
    if faults:
        raise UserError(Exit.CONFIG, "\n  ".join(["the configuration cannot work:", *dict.fromkeys(faults)]))
    return configs


def compose_hydra_settings(config_name: str, overrides: list[str], config_dir: str | None = None) -> DictConfig:
    """What Hydra itself is set to (the node `hydra`), for a command line that can be
    composed; of sweeps, with their first values.
    """
    folders = [CONF] + ([_own_folder(config_dir)] if config_dir else [])
    with _composing():
        lines, _, _ = expand_sweeps(overrides, list_groups(config_name, folders), multirun=True)
        words = [*_searched(folders[1:]), *[word.input_line for word in next(lines)]]
        return compose(config_name, words, return_hydra_config=True).hydra


@contextmanager
def _composing() -> Iterator[None]:
    """Hydra, ready to compose from `conf/`; also inside a job that Hydra runs, which it would refuse."""
    running, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra = running


def _searched(folders: Sequence[Path]) -> list[str]:
    return [f"hydra.searchpath=['file://{folder}']" for folder in folders]


def _own_folder(config_dir: str) -> Path:
    """The folder of `--config-dir`; classes that its files name are trusted. A file in
    it that one of ours hides would never be read.
    """
    folder = Path(config_dir).resolve()
    if not folder.is_dir():
        raise UserError(Exit.CONFIG, f"--config-dir {config_dir}: no such folder")
    names = [file.relative_to(folder) for file in sorted(folder.glob("*/*.yaml"))]
    hidden = [str(name) for name in names if (CONF / name).exists()]
    if hidden:
        raise UserError(Exit.CONFIG, f"--config-dir {config_dir}: rename {', '.join(hidden)}, conf/ has that name")
    CONFIG_DIR[:] = ["--config-dir", config_dir]
    for file in folder.glob("**/*.yaml"):
        with suppress(OSError, UnicodeDecodeError, YAMLError):  # told of where it is chosen
            trust(safe_load(file.read_text()))
    return folder


@lru_cache(maxsize=64)  # half a second of reading yaml; what was checked is also what a job gets
def _choose(config_name: str, groups: tuple[str, ...], folders: tuple[Path, ...], words: tuple[str, ...]) -> Choices:
    searched = _searched(folders)
    config = compose(config_name, [*searched, *words], return_hydra_config=True)
    chosen = {group: config.hydra.runtime.choices[group] for group in groups}
    plain = chosen | ({"experiment": "none"} if "experiment" in chosen else {})
    files = compose(config_name, [*searched, *[f"{group}={name}" for group, name in plain.items() if name]])
    with open_dict(config):
        del config["hydra"]
        for group in {word.partition("=")[0] for word in words} & set(groups) - {"experiment"}:
            # what the experiment says of the choice that it would have made; the rest it says of any
            for key in set(config[group] or ()) - set(files[group] or ()):
                del config[group][key]
        if _another_model(config_name, searched, words, chosen):
            config.model = files.model  # widths and levels of one network say nothing of another
    types = {name: key.type for name, key in read_keys(CONF / f"{config_name}.yaml").items()}
    for group, name in chosen.items():
        keys = list_option_keys(group, name, (CONF, *folders)) if name else {}
        types |= {f"{group}.{key}": value.type for key, value in keys.items()}
    return Choices(config, flatten(files, {}), types, chosen)


def _another_model(config_name: str, searched: list[str], words: tuple[str, ...], chosen: dict) -> bool:
    """Whether the command line names another network than its experiment does."""
    others = [word for word in words if word.partition("=")[0] != "model"]
    if len(others) == len(words) or chosen.get("experiment", "none") == "none":
        return False
    own = compose(config_name, [*searched, *others], return_hydra_config=True).hydra.runtime.choices["model"]
    return own != chosen["model"]


def sampler_faults(sampler: dict, diffusion: dict, name: str, folders: Sequence[Path] = (CONF,)) -> list[str]:
    """A sampler for another process (it says in `serves` for which it is), and the names of those for this one."""
    serves, process = sampler.get("serves"), diffusion.get("process", "discrete")  # which older runs do not name
    if not isinstance(serves, Sequence) or isinstance(serves, str) or process in serves:
        return []
    files = sorted(file for folder in folders for file in folder.glob("sampler/*.yaml"))
    right = ", ".join(file.stem for file in files if process in OmegaConf.load(file).get("serves", ()))
    served = ", ".join(map(str, serves))
    return [f"sampler={name} serves {served} processes and this one is {process}: use {right}"]


# -------------------------------------------------------------------------------------------------------- data


def build_source(data: dict) -> object:
    """The source of a `data` group; it takes the keys that its constructor names."""
    source = locate(data.get("_target_"))
    return build({key: data[key] for key in ("_target_", *inspect.signature(source).parameters) if key in data})


def resolve_data(config: DictConfig) -> tuple[dict, object]:
    """The resolved configuration, with the classes that the source found, and the source."""
    source = build_source(OmegaConf.to_container(config.data, resolve=True))
    asked, found = config.data.num_classes, len(source.class_names)
    if asked is not None and asked != found:
        raise UserError(Exit.DATA, f"data.num_classes={asked}, but the source has {found or 'no'} classes")
    config = copy.deepcopy(config)
    with open_dict(config):
        config.data.num_classes, config.data.class_names = found, list(source.class_names)
    return OmegaConf.to_container(config, resolve=True), source
