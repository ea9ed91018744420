"""Labels of images: a class, or a blend of classes for networks that take one."""

from collections.abc import Mapping, Sequence

Label = int | tuple[float, ...]  # index of a class, or a share for each class


def parse_class(value: str | int, class_names: Sequence[str]) -> int:
    """Return the index of a class given by name or index; a name such as "10" goes before an index.

    Raises:
        ValueError: if there is no such class.
    """
    if str(value) in class_names:
        return class_names.index(str(value))
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(class_names):
        return value
    listed = ", ".join(f"{k} {name}" if str(k) != name else name for k, name in enumerate(class_names))
    raise ValueError(f"{value}: not a class of this run. Choose from {listed}")


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


def nonzero_shares(blend: tuple[float, ...], class_names: Sequence[str]) -> dict[str, float]:
    """Return the nonzero shares by class name, the inverse of `make_blend`."""
    return {name: share for name, share in zip(class_names, blend, strict=True) if share}


def format_label(label: Label, class_names: Sequence[str]) -> str:
    """Return the name of a class or a blend.

    >>> format_label(2, ["hero", "side", "food"]), format_label((0.5, 0.0, 0.5), ["hero", "side", "food"])
    ('food', '0.5 hero + 0.5 food')
    """
    if isinstance(label, int):
        return class_names[label]
    parts = [name if share == 1 else f"{share:g} {name}" for name, share in nonzero_shares(label, class_names).items()]
    return " + ".join(parts) or "no class"
