"""Classes that a configuration names by `_target_`: which may be built, and building them.

A configuration stored in a run, a checkpoint or an exported folder may come from
anybody. It builds classes of this project, of the packages below and of installed
plugins only. Names that the user types, or has in a yaml file of --config-dir, are
trusted as well.
"""

import inspect
import re
from collections.abc import Iterable, Iterator
from functools import partial
from importlib import import_module
from importlib.metadata import entry_points

from diffusion_lit.config.overrides import did_you_mean
from diffusion_lit.system.errors import ConfigError, UserError

TRUSTED_MODULES = {  # beginning of a name -> modules in which a class of that name must be defined
    "diffusion_lit": ("diffusion_lit",),
    "diffusers": ("diffusers.schedulers", "diffusers.models.unets"),
    "torch.optim": ("torch.optim",),
    "lightning.pytorch.callbacks": ("lightning.pytorch.callbacks",),
    "lightning.pytorch.loggers": ("lightning.pytorch.loggers",),
    "torchvision.transforms.v2": ("torchvision.transforms.v2",),
}
PLUGINS = "diffusion_lit.plugins"  # entry point of packages with further classes
_trusted_names: set[str] = set()


def trust(config: object) -> None:
    """Allow this process to build every class that a configuration of the user names."""
    _trusted_names.update(map(str, target_names(config)))


def trust_overrides(overrides: Iterable[str]) -> None:
    """Allow this process to build every class that the user typed as a `_target_`."""
    for override in overrides:
        for names in re.findall(r"_target_['\"]?\s*[=:]\s*(?:choice\()?['\"]?([\w.,]+)", override):
            _trusted_names.update(filter(None, names.split(",")))


def target_names(tree: object) -> Iterator[object]:
    """Yield every `_target_` of a plain tree, however deep in mappings and lists."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key == "_target_":
                yield value
            yield from target_names(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from target_names(value)


def locate(target: str) -> type:
    """Return the class of a dotted name.

    Raises:
        UserError: exit 2 if the name is not trusted, or is not that of a class.
    """
    name = str(target)
    modules = _find_modules(name)
    if not modules and name not in _trusted_names:
        raise ConfigError(
            f"_target_={name}: not a trusted class. If you trust it, pass the "
            f"--config-dir whose yaml names it, type it on the command line, or install its package with an entry "
            f"point in {PLUGINS}"
        )
    module, _, last = name.rpartition(".")
    try:
        target_class = getattr(import_module(module), last)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"_target_={name}: class not found ({error})") from None
    kind = target_class.func if isinstance(target_class, partial) else target_class
    is_trusted = name in _trusted_names or any(_is_inside(getattr(kind, "__module__", ""), one) for one in modules)
    if not inspect.isclass(kind) or not is_trusted:
        raise ConfigError(f"_target_={name}: not a class that a configuration may build")
    return target_class


def target_fault(target: object) -> str | None:
    """Return why a class cannot be built.

    Only classes of the user are imported; ours would import torch.
    """
    if not _find_modules(str(target)):
        try:
            locate(target)
        except UserError as error:
            return str(error)
    return None


def argument_fault(where: str, leaf: object) -> str | None:
    """Return which argument of a class is unknown or missing, or None.

    Args:
        where: dotted key of the leaf.
        leaf: mapping with `_target_` and the arguments.
    """
    if not isinstance(leaf, dict) or "_target_" not in leaf:
        return f"{where}: add {where}._target_=package.Class"
    name = leaf["_target_"]
    try:
        parameters = dict(inspect.signature(locate(name)).parameters)
    except UserError as error:
        return str(error)
    if where == "optimizer":
        parameters.pop("params", None)  # the module passes them
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    unknown = [key for key in leaf if key not in ("_target_", *parameters)]
    if unknown and not takes_any:
        key, listed = f"{where}.{unknown[0]}", ", ".join(parameters) or "no arguments"
        close = did_you_mean(key, [f"{where}.{known}" for known in parameters])
        return f"{key}: {name} has no such argument{close}, it has {listed}. Remove it with ~{key}"
    required = [key for key, p in parameters.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    missing = [key for key in required if key not in leaf and (where, key) != ("logger", "save_dir")]
    return f"{where}: {name} needs {missing[0]}. Add +{where}.{missing[0]}=..." if missing else None


def build(tree: object) -> object:
    """Return a plain tree with every mapping that has a `_target_` replaced by an object of that class.

    All names are checked before the first object is built.

    Raises:
        UserError: exit 2 for a class that is not trusted, or that does not take the
            other keys.
    """
    for name in target_names(tree):
        locate(name)
    return _build(tree)


def _build(tree: object) -> object:
    if isinstance(tree, list):
        return [_build(value) for value in tree]
    if not isinstance(tree, dict):
        return tree
    values = {key: _build(value) for key, value in tree.items() if key != "_target_"}
    if "_target_" not in tree:
        return values
    cls = locate(tree["_target_"])
    try:
        inspect.signature(cls).bind(**values)
    except TypeError as error:
        raise ConfigError(f"_target_={tree['_target_']}: {error}") from None
    return cls(**values)


def _find_modules(name: str) -> tuple[str, ...]:
    """Return the modules in which a class of this name may be defined.

    There are none for a name that is not trusted.
    """
    ours = next((modules for start, modules in TRUSTED_MODULES.items() if _is_inside(name, start)), ())
    return ours or tuple(entry.module for entry in entry_points(group=PLUGINS) if _is_inside(name, entry.module))


def _is_inside(name: str, module: str) -> bool:
    return f"{name}.".startswith(f"{module}.")
