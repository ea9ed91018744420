"""The command line: composing the configuration and checking all of it before anything heavy is imported.

A leaf yaml is the schema of its keys and types; `diffusion_lit.rules` adds ranges, choices and what does not go together.
"""

import difflib
import inspect
import secrets
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra import main as hydra_main
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from diffusion_lit.errors import Exit, UserError, reported
from diffusion_lit.rules import RULES, conflicts, type_fault

_HERE = Path(__file__).parent
CONF = _HERE / "conf" if (_HERE / "conf").is_dir() else _HERE.parent / "conf"  # in the wheel, in a checkout
OUR_CLASSES = ("diffusion_lit.", "diffusers.", "torch.optim.")  # what a `_target_` may name


# ---------------------------------------------------------------------------------------------------- launching

Task = Callable[[DictConfig], None]


def launch(
    config_name: str, task: Task, prepare: Callable[[list[str]], list[str]] = list, check: Task = lambda config: None
) -> None:
    """Run a command: rewrite the overrides (`prepare`), check them all, `check` what they name, then Hydra and `task`.

    A UserError anywhere ends the command with its message and exit code; nothing is created before the checks pass.
    """
    OmegaConf.register_new_resolver("hex", lambda digits: secrets.token_hex(8)[:digits], use_cache=True, replace=True)
    args = get_args_parser().parse_args()
    with reported():
        overrides = args.overrides
        if not (args.help or args.hydra_help or args.info or args.shell_completion or args.cfg):
            overrides = prepare(overrides)
            for config in composed(config_name, overrides, args.config_dir):
                check(config)
        elif args.cfg:
            composed(config_name, overrides, args.config_dir, complete=False)
    flags = [argument for argument in sys.argv[1:] if argument not in args.overrides]
    sys.argv[1:] = [*flags, *overrides]

    def run(config: DictConfig) -> None:
        with reported():
            task(config)

    hydra_main(version_base="1.3", config_path=str(CONF), config_name=config_name)(run)()


def composed(
    config_name: str, overrides: list[str], config_dir: str | None = None, complete: bool = True
) -> list[DictConfig]:
    """The configurations of a command line (one, or one for each value of a sweep), every fault reported at once.

    Args:
        config_dir: a folder of more yaml files (`--config-dir`).
        complete: false lets keys without a value (???) pass.
    Raises:
        UserError: exit 2, one line for each fault.
    """
    folders = [CONF] + ([Path(config_dir)] if config_dir else [])
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except HydraException as error:
        raise UserError(Exit.CONFIG, f"cannot read the command line: {error}") from None
    groups = _groups(folders)
    faults = [fault for override in parsed if (fault := _choice_fault(override, groups))]
    good = [override for override in parsed if not _choice_fault(override, groups)]
    choices = [override for override in good if override.key_or_group in groups]
    configs = []
    with initialize_config_dir(str(CONF), version_base="1.3", job_name=config_name):
        searched = [f"hydra.searchpath=[file://{Path(config_dir).resolve()}]"] if config_dir else []
        base = _compose(config_name, searched + [_first_value(override) for override in choices])
        known = [override for override in good if override in choices or _knows(base, override, faults)]
        for line in _sweep_lines(known):
            config = _compose(config_name, searched + line)
            configs.append(config)
            faults += _value_faults(config, folders, config_name, complete)
    if faults:
        raise UserError(Exit.CONFIG, "\n  ".join(["the configuration cannot work:", *dict.fromkeys(faults)]))
    return [_without_hydra(config) for config in configs]


def _without_hydra(config: DictConfig) -> DictConfig:
    with open_dict(config):
        del config["hydra"]
    return config


def _compose(config_name: str, overrides: list[str]) -> DictConfig:
    try:
        return compose(config_name, overrides, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(Exit.CONFIG, f"the configuration cannot be composed: {error}") from None


def _groups(folders: list[Path]) -> dict[str, list[str]]:
    """Group name to the names one can choose."""
    groups: dict[str, list[str]] = {}
    for folder in folders:
        for file in sorted(folder.glob("*/*.yaml")):
            groups.setdefault(file.parent.name, []).append(file.stem)
    return groups


def _values(override: Override) -> list:
    return list(override.sweep_iterator()) if override.is_sweep_override() else [override.value()]


def _choice_fault(override: Override, groups: dict[str, list[str]]) -> str | None:
    group = override.key_or_group
    if group not in groups or override.is_delete():
        return None
    for choice in _values(override):
        if choice is not None and str(choice) not in groups[group]:
            return f"{group}={choice}: no such {group}{_did_you_mean(str(choice), groups[group])}"
    return None


def _did_you_mean(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return f"{hint}; there are {', '.join(known)}"


def _keys(config: DictConfig, prefix: str = "") -> list[str]:
    """All dotted keys, branches too."""
    keys = []
    for key in config:
        name = f"{prefix}{key}"
        keys.append(name)
        node = config._get_node(key)
        if isinstance(node, DictConfig) and not node._is_none() and not node._is_interpolation():
            keys += _keys(node, f"{name}.")
    return keys


def _knows(base: DictConfig, override: Override, faults: list[str]) -> bool:
    key = override.key_or_group
    if key.split(".")[0] == "hydra":
        return True
    known = [name for name in _keys(base) if not name.startswith("hydra")]
    if key in known:
        return True
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if not close:  # the right word in the wrong place: lr for optimizer.lr
        close = [name for name in known if name.split(".")[-1] == key.split(".")[-1]][:1]
    hint = f" (did you mean {close[0]}?)" if close else "; --help shows all keys"
    faults.append(f"{key}: no such key{hint}")
    return False


def _first_value(override: Override, value: object = None) -> str:
    """The override as text, a sweep reduced to one value."""
    if not override.is_sweep_override():
        return override.input_line
    if value is None:
        value = next(override.sweep_iterator())
    return f"{override.key_or_group}={value}"


def _sweep_lines(overrides: list[Override]) -> list[list[str]]:
    """Every value of every sweep once, the other sweeps at their first value."""
    lines = [[_first_value(override) for override in overrides]]
    for k, override in enumerate(overrides):
        if override.is_sweep_override():
            for value in list(override.sweep_iterator())[1:]:
                lines.append(lines[0][:k] + [_first_value(override, value)] + lines[0][k + 1 :])
    return lines


# ---------------------------------------------------------------------------------------------------- checking


def _value_faults(config: DictConfig, folders: list[Path], config_name: str, complete: bool) -> list[str]:
    """Keys the schema lacks, missing values, wrong types, values out of range, and combinations that cannot work."""
    schema = _schema(config, folders, config_name)
    faults = []
    for key in _keys(config):
        if key.split(".")[0] == "hydra":
            continue
        if key not in schema:
            close = difflib.get_close_matches(key, list(schema), n=1)
            faults.append(f"{key}: no such key" + (f" (did you mean {close[0]}?)" if close else ""))
        elif OmegaConf.is_missing(_parent(config, key), key.split(".")[-1]):
            if complete:
                faults.append(f"{key} needs a value: add {key}=...")
        else:
            fault = _value_fault(key, config, schema[key])
            if fault:
                faults.append(fault)
    if complete and not faults and config_name == "train":
        faults = conflicts(OmegaConf.to_container(config), config.hydra.runtime.choices, _serving(folders))
    return faults


def _value_fault(key: str, config: DictConfig, default: object) -> str | None:
    try:
        value = OmegaConf.select(config, key)
    except OmegaConfBaseException as error:
        return f"{key}: {str(error).splitlines()[0]}"
    if key.endswith("_target_"):
        return None if str(value).startswith(OUR_CLASSES) else f"{key}={value}: not a class of this project"
    rule = RULES.get(key)
    if rule:
        fault = rule.fault(OmegaConf.to_container(value) if OmegaConf.is_config(value) else value)
    elif OmegaConf.is_list(default) or isinstance(default, list):
        fault = None if OmegaConf.is_list(value) else "must be a list [a,b]"
    elif default is None or isinstance(default, dict) or OmegaConf.is_config(value):
        fault = None
    else:
        fault = type_fault(value, type(default))
    return f"{key}={value}: {fault}" if fault else None


def _parent(config: DictConfig, key: str) -> DictConfig:
    return OmegaConf.select(config, key.rpartition(".")[0]) if "." in key else config


def _serving(folders: list[Path]) -> dict[str, list[str]]:
    """Process to the samplers that serve it."""
    serving: dict[str, list[str]] = {}
    for file in sorted(file for folder in folders for file in folder.glob("sampler/*.yaml")):
        for process in OmegaConf.load(file)["serves"]:
            serving.setdefault(process, []).append(file.stem)
    return serving


def _schema(config: DictConfig, folders: list[Path], config_name: str) -> dict[str, object]:
    """Dotted key to default value: the run-level keys of <config_name>.yaml and the leaf yaml of each chosen group."""
    schema: dict[str, object] = {}
    raw = OmegaConf.load(CONF / f"{config_name}.yaml")
    for key in raw:
        if key not in ("defaults", "hydra"):
            schema[key] = None if OmegaConf.is_missing(raw, key) else raw._get_node(key)._value()
    for group, choice in config.hydra.runtime.choices.items():
        if choice is None or "/" in group or group == "experiment":
            continue
        file = next((f / group / f"{choice}.yaml" for f in folders if (f / group / f"{choice}.yaml").exists()), None)
        if file:
            leaf = OmegaConf.load(file)
            schema[group] = {}
            for key in leaf:
                value = None if OmegaConf.is_missing(leaf, key) else leaf._get_node(key)
                if value is not None:
                    value = None if value._is_interpolation() else value._value()
                schema[f"{group}.{key}"] = value
    return schema


# ---------------------------------------------------------------------------------------------------- building


def build(leaf: dict, **extra: object) -> object:
    """The object a leaf names by `_target_`, given the leaf's other keys. Only classes of this project are called."""
    arguments = {key: value for key, value in leaf.items() if key != "_target_"}
    return locate(leaf["_target_"])(**arguments, **extra)


def locate(target: str) -> type:
    """The class of a dotted name. Raises UserError (exit 2) for a name outside the project or that does not exist."""
    if not target.startswith(OUR_CLASSES):
        raise UserError(Exit.CONFIG, f"{target} is no class of this project and is not called")
    module, _, name = target.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError):
        raise UserError(Exit.CONFIG, f"{target}: there is no such class") from None


def source_of(data: dict) -> object:
    """The source of a `data` group; it takes the keys that its constructor names."""
    source = locate(data["_target_"])
    return source(**{key: data[key] for key in inspect.signature(source).parameters if key in data})


def with_data_facts(config: DictConfig) -> tuple[dict, object]:
    """The resolved configuration, with the classes that the source found, and the source."""
    source = source_of(OmegaConf.to_container(config.data, resolve=True))
    asked, found = config.data.num_classes, len(source.class_names)
    if asked is not None and asked != found:
        raise UserError(Exit.DATA, f"data.num_classes={asked}, but the source has {found or 'no'} classes")
    facts = OmegaConf.create({"data": {"num_classes": found, "class_names": list(source.class_names)}})
    return OmegaConf.to_container(OmegaConf.merge(OmegaConf.to_container(config), facts), resolve=True), source
