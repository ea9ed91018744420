"""Checks that constructor arguments fit together, which raise ValueError.

Types and ranges of single arguments are in the files of `conf/model`.
"""

from collections.abc import Sequence

from diffusion_lit.imaging.sizes import ImageSize, height_width


def check_positive(**values: float | Sequence[float]) -> None:
    """Raise ValueError unless all numbers, also those of lists, are above 0 and no list is empty."""
    for name, value in values.items():
        numbers = value if isinstance(value, Sequence) else [value]
        if not numbers or any(number <= 0 for number in numbers):
            raise ValueError(f"{name}={value}: must be above 0")


def check_multiple(divisor: int, reason: str, **values: int | Sequence[int]) -> None:
    """Raise ValueError unless all values, also those of lists, are multiples of the divisor."""
    for name, value in values.items():
        if any(number % divisor for number in (value if isinstance(value, Sequence) else [value])):
            raise ValueError(f"{name}={value}: must be a multiple of {divisor}, {reason}")


def check_halvings(image_size: ImageSize, times: int) -> None:
    """Raise ValueError, which names the nearest sizes, unless both sides of the image can be halved so many times."""
    sides, multiple = height_width(image_size), 2**times
    below = [side // multiple * multiple for side in sides]
    sizes = [size for size in (below, [side + multiple for side in below]) if min(size) > 0]
    nearest = " or ".join(str(list(size) if size[0] != size[1] else size[0]) for size in sizes)
    reason = f"the network halves images {times} time{'s' * (times != 1)}. The nearest are {nearest}"
    check_multiple(multiple, reason, image_size=image_size)


def check_levels(count: int, **levels: Sequence[int]) -> None:
    """Raise ValueError unless all levels are in 0 to count - 1."""
    for name, value in levels.items():
        if any(not 0 <= level < count for level in value):
            raise ValueError(f"{name}={value}: the network has levels 0 to {count - 1}")
