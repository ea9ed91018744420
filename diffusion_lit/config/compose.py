"""The configuration of a command line, composed by Hydra and checked before torch is imported.

`config/schema.py` reads keys, types and ranges from the yaml files,
`config/constraints.py` checks values that belong together. All faults are reported
at once.
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

from diffusion_lit.config import network_size  # noqa: F401 registers its interpolations
from diffusion_lit.config.groups import CONF, list_groups, list_option_keys
from diffusion_lit.config.overrides import CONFIG_DIR, expand_sweeps
from diffusion_lit.config.paths import make_absolute
from diffusion_lit.config.schema import read_keys
from diffusion_lit.config.targets import build, locate, trust
from diffusion_lit.config.validation import Choices, apply_overrides, find_argument_faults, flatten
from diffusion_lit.system.errors import ConfigError, DataError, raise_faults

SELECTED_SOURCE = "diffusion_lit.data.sources.selection.SelectedSource"
OmegaConf.register_new_resolver("hex", lambda digits: secrets.token_hex(8)[:digits], use_cache=True, replace=True)


def compose_configs(
    config_name: str, overrides: list[str], config_dir: str | None = None, complete: bool = True, multirun: bool = True
) -> list[DictConfig]:
    """Return the checked configuration of a command line, or one for each job of a sweep.

    Args:
        config_name: name of the command.
        overrides: overrides as they are typed.
        config_dir: folder of more yaml files (`--config-dir`).
        complete: whether keys without a value (???) are faults.
        multirun: whether sweeps are allowed.

    Raises:
        UserError: exit 2, one line for each fault.
    """
    folders = _list_folders(config_dir)
    groups = list_groups(config_name, folders)
    configs = []
    with _initialized_hydra():
        combinations, faults, faulty_keys = expand_sweeps(overrides, groups, multirun)
        faulty_keys |= set(groups) if "experiment" in faulty_keys else set()
        try:
            for combination in combinations:
                chosen = [one for one in combination if one.key_or_group in groups or one.is_hydra_override()]
                single = [one for one in combination if one not in chosen]
                texts = tuple(override.input_line for override in chosen)
                choices = _compose_choices(config_name, tuple(groups), tuple(folders), texts)
                config, own_faults = apply_overrides(choices, single, faulty_keys, complete)
                configs.append(config)
                faults += own_faults
                if complete and not faults:
                    faults += find_argument_faults(config, choices)
                if "diffusion" in config:
                    faults += sampler_faults(config.sampler, config.diffusion, choices.chosen["sampler"], folders)
        except (HydraException, OmegaConfBaseException, YAMLError, AssertionError) as error:
            faults.append(str(error).partition("Config search path")[0].strip().replace("\n", "\n  "))
            if re.search(r"hydra/(launcher|sweeper)/", faults[-1]):
                faults.append('joblib, submitit and optuna are plugins: pip install "diffusion_lit[sweeps]"')
    raise_faults("invalid configuration:", [*dict.fromkeys(faults)])
    return configs


def compose_hydra_settings(config_name: str, overrides: list[str], config_dir: str | None = None) -> DictConfig:
    """Return the node `hydra` of a valid command line.

    For a sweep it has the first values.
    """
    folders = _list_folders(config_dir)
    with _initialized_hydra():
        combinations, _, _ = expand_sweeps(overrides, list_groups(config_name, folders), multirun=True)
        texts = [*_search_path(folders), *[override.input_line for override in next(combinations)]]
        return compose(config_name, texts, return_hydra_config=True).hydra


@contextmanager
def _initialized_hydra() -> Iterator[None]:
    """Initialize Hydra for `conf/`, also inside of a job that Hydra runs, which it would refuse."""
    running, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra = running


def _search_path(folders: Sequence[Path]) -> list[str]:
    return [f"hydra.searchpath=['file://{folder}']" for folder in folders[1:]]


def _list_folders(config_dir: str | None) -> list[Path]:
    """Return `CONF` and the folder of --config-dir, and trust the classes that its files name."""
    if not config_dir:
        return [CONF]
    folder = Path(config_dir).resolve()
    if not folder.is_dir():
        raise ConfigError(f"--config-dir {config_dir}: no such folder")
    try:
        files = [file for pattern in ("*.yaml", "*/*.yaml", "*/*/*.yaml") for file in sorted(folder.glob(pattern))]
    except OSError as error:
        raise ConfigError(f"--config-dir {config_dir}: cannot be searched: {error}") from None
    names = [file.relative_to(folder) for file in files]
    hidden = [str(name) for name in names if (CONF / name).exists()]  # Hydra would read ours instead
    if hidden:
        raise ConfigError(f"--config-dir {config_dir}: rename {', '.join(hidden)}, conf/ has that name")
    CONFIG_DIR[:] = ["--config-dir", config_dir]
    for file in files:
        with suppress(OSError, UnicodeDecodeError, YAMLError):  # reported if the file is chosen
            trust(safe_load(file.read_text(encoding="utf-8")))
    return [CONF, folder]


@lru_cache(maxsize=64)  # reading the yaml files takes half a second
def _compose_choices(
    config_name: str, groups: tuple[str, ...], folders: tuple[Path, ...], texts: tuple[str, ...]
) -> Choices:
    """Compose with the group overrides alone.

    A group on the command line drops the keys that the experiment sets for its own
    choice.
    """
    path = _search_path(folders)
    config = compose(config_name, [*path, *texts], return_hydra_config=True)
    chosen = {group: config.hydra.runtime.choices[group] for group in groups}
    plain = chosen | ({"experiment": "none"} if "experiment" in chosen else {})
    files = config  # it already is what its files say, unless an experiment changed it
    if plain != chosen:
        files = compose(config_name, [*path, *[f"{group}={name}" for group, name in plain.items() if name]])
    with open_dict(config):
        del config["hydra"]
        for group in {text.partition("=")[0] for text in texts} & set(groups) - {"experiment"}:
            for key in set(config[group] or ()) - set(files[group] or ()):
                del config[group][key]
        if _is_other_model(config_name, path, texts, chosen):
            config.model = files.model  # channels and levels of one network do not fit another
    types = {name: key.type for name, key in read_keys(CONF / f"{config_name}.yaml").items()}
    for group, name in chosen.items():
        keys = list_option_keys(group, name, folders) if name else {}
        types |= {f"{group}.{key}": value.type for key, value in keys.items()}
    return Choices(config, flatten(files, {}), types, chosen)


def _is_other_model(config_name: str, path: list[str], texts: tuple[str, ...], chosen: dict) -> bool:
    """Return whether the command line chooses another model than its experiment."""
    others = [text for text in texts if text.partition("=")[0] != "model"]
    if len(others) == len(texts) or chosen.get("experiment", "none") == "none":
        return False
    choices = compose(config_name, [*path, *others], return_hydra_config=True).hydra.runtime.choices
    return choices["model"] != chosen["model"]


def sampler_faults(sampler: dict, diffusion: dict, name: str, folders: Sequence[Path] = (CONF,)) -> list[str]:
    """Return a fault if a sampler does not serve the diffusion process, with the samplers that do."""
    serves, process = sampler.get("serves"), diffusion.get("process", "discrete")
    if not isinstance(serves, Sequence) or isinstance(serves, str) or process in serves:
        return []
    files = sorted(file for folder in folders for file in folder.glob("sampler/*.yaml"))
    others = ", ".join(file.stem for file in files if process in OmegaConf.load(file).get("serves", ()))
    served = ", ".join(map(str, serves))
    return [f"sampler={name}: serves {served} processes, and this one is {process}. Use {others}"]


def build_source(data: dict) -> object:
    """Return the data source of a `data` group, without the images of `data.exclude`.

    Its class takes the keys that it names. The `class_names` of a run decide the
    numbers of its classes.
    """
    cls = locate(data.get("_target_"))
    source = {key: data[key] for key in ("_target_", *inspect.signature(cls).parameters) if key in data}
    selection = {key: data[key] for key in ("exclude", "class_names") if data.get(key) is not None}
    return build({"_target_": SELECTED_SOURCE, "source": source} | selection if selection else source)


def resolve_data(config: DictConfig, class_names: Sequence[str] | None = None) -> tuple[dict, object]:
    """Return the resolved configuration with the classes of its data, and the data source.

    Args:
        config: of a run.
        class_names: the classes of the run to resume, in its order.

    Raises:
        UserError: exit 3 if `data.num_classes` is another number; exit 4 if the
            data has classes that the run to resume lacks.
    """
    data = OmegaConf.to_container(config.data, resolve=True)
    source = build_source(data | ({} if class_names is None else {"class_names": class_names}))
    configured, count = config.data.num_classes, len(source.class_names)
    if configured is not None and configured != count:
        raise DataError(f"data.num_classes={configured}, but the source has {count or 'no'} classes")
    config = copy.deepcopy(config)
    with open_dict(config):
        config.data.num_classes = count  # the network's follows it
    resolved = OmegaConf.to_container(config, resolve=True)
    resolved["data"]["class_names"] = list(source.class_names)  # after resolving: a class may be named ${x}
    return resolved | {"data": make_absolute(resolved["data"])}, source
