"""What an image is of: a class, or a blend of classes for networks that take one."""

from collections.abc import Mapping, Sequence

Label = int | tuple[float, ...]  # the number of a class, or a share of each of them


def number_of(word: str | int, class_names: Sequence[str]) -> int:
    """The class of a name or a number; a class called 10 is meant by 10, wherever it stands in the order.

    Raises:
        ValueError: if there is none.
    """
    if str(word) in class_names:
        return class_names.index(str(word))
    if isinstance(word, int) and not isinstance(word, bool) and 0 <= word < len(class_names):
        return word
    listed = ", ".join(f"{k} {name}" if str(k) != name else name for k, name in enumerate(class_names))
    raise ValueError(f"{word} is no class of this run; there are {listed}")


def blend_of(shares: Mapping[str | int, float], class_names: Sequence[str]) -> tuple[float, ...]:
    """A share for each class, 0 where none is given: {"hero": 0.5, "food": 0.5} is half of each.

    Shares are what the network gets, of any size; in training it saw 1 of a class, and 0 of all as the null label.

    Raises:
        ValueError: for names that are no classes, or one class under two of its names.
    """
    numbers = [number_of(word, class_names) for word in shares]
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"{' and '.join(map(str, shares))}: the same class twice")
    blend = dict(zip(numbers, shares.values(), strict=True))
    return tuple(float(blend.get(k, 0)) for k in range(len(class_names)))


def shares_of(blend: tuple[float, ...], class_names: Sequence[str]) -> dict[str, float]:
    """The shares that are not 0, the way back from `blend_of`."""
    return {name: share for name, share in zip(class_names, blend, strict=True) if share}


def name_of(label: Label, class_names: Sequence[str]) -> str:
    """>>> name_of(2, ["hero", "side", "food"]), name_of((0.5, 0.0, 0.5), ["hero", "side", "food"])
    ('food', '0.5 hero + 0.5 food')
    """
    if isinstance(label, int):
        return class_names[label]
    parts = [name if share == 1 else f"{share:g} {name}" for name, share in shares_of(label, class_names).items()]
    return " + ".join(parts) or "no class"
