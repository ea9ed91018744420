"""From the names of classes in a configuration to these classes, and which may be
built.

A configuration that is stored in a run, a checkpoint or an export is data and may come
from anybody: it builds only classes of this project and of the lists below, and classes
of packages that are installed as plugins. Names that a user types, or has in a yaml of
`--config-dir`, are the user's own: this process builds them as well.
"""

import inspect
import re
from collections.abc import Iterable, Iterator
from functools import partial
from importlib import import_module
from importlib.metadata import entry_points

from diffusion_lit.config.overrides import did_you_mean
from diffusion_lit.system.errors import Exit, UserError

TRUSTED_MODULES = {  # what a name begins with, and where a class of such a name must be defined
    "diffusion_lit": ("diffusion_lit",),
    "diffusers": ("diffusers.schedulers", "diffusers.models.unets"),
    "torch.optim": ("torch.optim",),
    "lightning.pytorch.callbacks": ("lightning.pytorch.callbacks",),
    "lightning.pytorch.loggers": ("lightning.pytorch.loggers",),
    "torchvision.transforms.v2": ("torchvision.transforms.v2",),
}
PLUGINS = "diffusion_lit.plugins"  # a package of classes names itself under this entry point
_own: set[str] = set()


def trust(config: object) -> None:
    """Let this process build every class that a configuration names: it is the user's own."""
    _own.update(map(str, target_names(config)))


def trust_overrides(overrides: Iterable[str]) -> None:
    """Let this process build every class that the user typed as a `_target_`."""
    for word in overrides:
        for names in re.findall(r"_target_['\"]?\s*[=:]\s*(?:choice\()?['\"]?([\w.,]+)", word):
            _own.update(filter(None, names.split(",")))


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
        UserError: exit 2 for a name that is not trusted, or that no class has.
    """
    name = str(target)
    places = _places(name)
    if not places and name not in _own:
        raise UserError(
            Exit.CONFIG,
            f"_target_={name}: not a class that a stored configuration may build. If you trust it, pass the "
            f"--config-dir whose yaml names it, type it on the command line, or install its package with an entry "
            f"point in {PLUGINS}",
        )
    module, _, last = name.rpartition(".")
    try:
        found = getattr(import_module(module), last)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(Exit.CONFIG, f"_target_={name}: class not found ({error})") from None
    kind = found.func if isinstance(found, partial) else found
    if not inspect.isclass(kind) or not (name in _own or any(_is_in(kind.__module__, place) for place in places)):
        raise UserError(Exit.CONFIG, f"_target_={name}: not a class that a configuration may build")
    return found


def target_fault(target: object) -> str | None:
    """Return why a class cannot be built. Only the user's own are imported; ours would load torch."""
    if not _places(str(target)):
        try:
            locate(target)
        except UserError as error:
            return str(error)
    return None


def argument_fault(where: str, leaf: object) -> str | None:
    """Return which key of a leaf its class does not take, or which one it lacks; None if it can be built."""
    if not isinstance(leaf, dict) or "_target_" not in leaf:
        return f"{where}: add {where}._target_=package.Class"
    try:
        parameters = inspect.signature(locate(leaf["_target_"])).parameters
    except UserError as error:
        return str(error)
    name = leaf["_target_"]
    if where == "optimizer":  # the code adds them
        parameters = {key: value for key, value in parameters.items() if key != "params"}
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if not takes_any and (wrong := [key for key in leaf if key not in ("_target_", *parameters)]):
        key, has = f"{where}.{wrong[0]}", ", ".join(parameters) or "none"
        close = did_you_mean(key, [f"{where}.{known}" for known in parameters])
        return f"{key}: {name} has no such argument{close}, it has {has}. Remove it by ~{key}"
    required = [key for key, p in parameters.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    lacking = [key for key in required if key not in leaf and (where, key) != ("logger", "save_dir")]
    return f"{where}: {name} needs {lacking[0]}. Add +{where}.{lacking[0]}=..." if lacking else None


def build(tree: object) -> object:
    """Return a plain tree with every leaf, a mapping with `_target_`, replaced by the
    object that it describes.

    All names are checked before the first object is built.

    Raises:
        UserError: exit 2 for a class that is not trusted, or that does not take the leaf's other keys.
    """
    for name in target_names(tree):
        locate(name)
    return _built(tree)


def _built(tree: object) -> object:
    if isinstance(tree, list):
        return [_built(value) for value in tree]
    if not isinstance(tree, dict):
        return tree
    values = {key: _built(value) for key, value in tree.items() if key != "_target_"}
    if "_target_" not in tree:
        return values
    cls = locate(tree["_target_"])
    try:
        inspect.signature(cls).bind(**values)
    except TypeError as error:
        raise UserError(Exit.CONFIG, f"_target_={tree['_target_']}: {error}") from None
    return cls(**values)


def _places(name: str) -> tuple[str, ...]:
    """Return where a class of a trusted name must be defined; nothing for a name that is not trusted."""
    ours = next((places for start, places in TRUSTED_MODULES.items() if _is_in(name, start)), ())
    return ours or tuple(entry.module for entry in entry_points(group=PLUGINS) if _is_in(name, entry.module))


def _is_in(name: str, place: str) -> bool:
    return f"{name}.".startswith(f"{place}.")
