"""Labels of images: a class, a blend of classes for networks that take one, a prompt, or a blend of prompts."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from numbers import Integral
from typing import TypeGuard

from diffusion_lit.system.console import join_names
from diffusion_lit.system.files import normalize_name

PromptBlend = tuple[tuple[str, float], ...]  # prompts, and the weight of each
# index of a class, or a share for each class; a prompt, or a blend of prompts
Label = int | tuple[float, ...] | str | PromptBlend


def row_names(config: dict) -> list[str]:
    """Return the names of the rows of a grid: the prompts of the previews, else the classes, else none."""
    return list(config.get("preview_prompts") or config["data"]["class_names"])


def parse_class(value: str | int, class_names: Sequence[str]) -> int:
    """Return the index of a class given by name or index; a name such as "10" goes before an index.

    Raises:
        ValueError: if there is no such class.
    """
    names = [normalize_name(name) for name in class_names]
    if normalize_name(str(value)) in names:
        return names.index(normalize_name(str(value)))
    if len(alike := [k for k, name in enumerate(names) if _is_read_as(name, value)]) == 1:
        return alike[0]
    if isinstance(value, Integral) and not isinstance(value, bool) and 0 <= value < len(names):
        return int(value)
    listed = join_names((f"{k} {name}" if str(k) != name else name for k, name in enumerate(class_names)), 30)
    raise ValueError(f"{value}: not a class of this run. Choose from {listed}")


def _is_read_as(name: str, value: str | float) -> bool:
    """Return whether a command line reads the name of a class, such as 1_000 or true, as this number or boolean."""
    if isinstance(value, bool):
        return name.lower() == str(value).lower()
    with suppress(ValueError):
        return not isinstance(value, str) and float(name) == value
    return False


def make_blend(shares: Mapping[str | int, float], class_names: Sequence[str]) -> tuple[float, ...]:
    """Return a share for each class, 0 where none is given: {"hero": 0.5, "food": 0.5} is half of each.

    The network gets the shares as they are, of any size; in training it saw 1 for the class of
    an image, and zeros as the null label.

    Raises:
        ValueError: if there is no such class, or a class is given twice.
    """
    indices = [parse_class(value, class_names) for value in shares]
    if len(set(indices)) < len(indices):
        raise ValueError(f"{' and '.join(map(str, shares))}: the same class twice")
    blend = dict(zip(indices, shares.values(), strict=True))
    return tuple(float(blend.get(k, 0)) for k in range(len(class_names)))


def nonzero_shares(blend: Sequence[float], class_names: Sequence[str]) -> dict[str, float]:
    """Return the nonzero shares by class name, the inverse of `make_blend`."""
    return {name: share for name, share in zip(class_names, blend, strict=True) if share}


def is_prompt_blend(label: object) -> TypeGuard[PromptBlend]:
    """Return whether a label is a blend of prompts."""
    return isinstance(label, tuple) and bool(label) and isinstance(label[0], tuple)


def format_label(label: Label, class_names: Sequence[str]) -> str:
    """Return the name of a class, a prompt or a blend.

    >>> format_label(2, ["hero", "side", "food"]), format_label((0.5, 0.0, 0.5), ["hero", "side", "food"])
    ('food', '0.5 hero + 0.5 food')
    """
    if isinstance(label, str):
        return label or "no prompt"
    if isinstance(label, int):
        return class_names[label]
    if is_prompt_blend(label):
        return " + ".join(f"{share:g} {text}" for text, share in label)
    shares = nonzero_shares(label, class_names)  # type: ignore[arg-type]  # a tuple of numbers is left
    parts = [name if share == 1 else f"{share:g} {name}" for name, share in shares.items()]
    return " + ".join(parts) or "no class"
