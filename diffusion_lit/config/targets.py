"""From the names of classes in a configuration to these classes, and which are trusted.

A configuration that is stored in a run, a checkpoint or an export is data and may come from anybody: it builds nothing
but classes of this project, schedulers and UNets of diffusers, and classes of packages that are installed as plugins.
"""

import inspect
from functools import partial
from importlib import import_module
from importlib.metadata import entry_points

from diffusion_lit.system.errors import Exit, UserError

PLACES = {  # what a name begins with, and where a class of such a name must be defined
    "diffusion_lit": ("diffusion_lit",),
    "diffusers": ("diffusers.schedulers", "diffusers.models.unets"),
    "torch.optim": ("torch.optim.adam", "torch.optim.adamw"),
}
PLUGINS = "diffusion_lit.plugins"  # a package of classes names itself under this entry point
_own: set[str] = set()


def trust(config: object) -> None:
    """Let every class that a configuration names be built by this process: it is the user's own."""
    for key, value in config.items() if isinstance(config, dict) else ():
        _own.add(value) if key == "_target_" else trust(value)


def locate(target: str) -> type:
    """The class of a dotted name.

    Raises:
        UserError: exit 2 for a name that is not trusted, or that no class has.
    """
    name = str(target)
    places = _places(name)
    if not places and name not in _own:
        raise UserError(
            Exit.CONFIG,
            f"_target_: {name} is no class of diffusion_lit and is not called; if you trust it, let a yaml in a "
            f"--config-dir of your own name it, or install its package with an entry point in {PLUGINS}",
        )
    module, _, last = name.rpartition(".")
    try:
        found = getattr(import_module(module), last)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(Exit.CONFIG, f"_target_: {name}: there is no such class ({error})") from None
    kind = found.func if isinstance(found, partial) else found
    if not inspect.isclass(kind) or not (name in _own or any(_is_in(kind.__module__, place) for place in places)):
        raise UserError(Exit.CONFIG, f"_target_: {name} is no class that a configuration can name")
    return found


def own_fault(target: str) -> str | None:
    """Why a class that only the user's own files name cannot be built; others need no look, which would load torch."""
    if target in _own and not _places(target):
        try:
            locate(target)
        except UserError as error:
            return str(error)
    return None


def build(leaf: dict) -> object:
    """The object a leaf names by `_target_`, given the leaf's other keys. Raises UserError (exit 2) if it takes others
    or the class is not trusted."""
    found = locate(leaf.get("_target_"))
    keys = {key: value for key, value in leaf.items() if key != "_target_"}
    try:
        inspect.signature(found).bind(**keys)
    except TypeError as error:
        raise UserError(Exit.CONFIG, f"_target_: {leaf['_target_']}: {error}") from None
    return found(**keys)


def _places(name: str) -> tuple[str, ...]:
    """Where a class of a trusted name must be defined; nowhere, if the name is not trusted."""
    ours = next((places for start, places in PLACES.items() if _is_in(name, start)), ())
    return ours or tuple(entry.module for entry in entry_points(group=PLUGINS) if _is_in(name, entry.module))


def _is_in(name: str, place: str) -> bool:
    return f"{name}.".startswith(f"{place}.")
