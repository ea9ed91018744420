"""Checks of constructor arguments. A network raises ValueError for arguments that it cannot be built from."""

from collections.abc import Sequence

from diffusion_lit.imaging.sizes import ImageSize


def check_choice(name: str, value: object, choices: Sequence) -> None:
    """Raise ValueError unless a value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name}={value}: must be one of {', '.join(map(str, choices))}")


def check_positive(**values: float | Sequence[float]) -> None:
    """Raise ValueError unless every number, or every number of a list, is above 0. Lists must not be empty."""
    for name, value in values.items():
        numbers = value if isinstance(value, Sequence) else [value]
        if not numbers or any(number <= 0 for number in numbers):
            raise ValueError(f"{name}={value}: must be above 0")


def check_share(**values: float) -> None:
    """Raise ValueError unless every number is in [0, 1]."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value}: must be in [0, 1]")


def check_multiple(divisor: int, of: str, **values: int | Sequence[int]) -> None:
    """Raise ValueError unless every value is a multiple of the divisor, which `of` describes."""
    for name, value in values.items():
        if any(number % divisor for number in (value if isinstance(value, Sequence) else [value])):
            raise ValueError(f"{name}={value}: must be a multiple of {divisor}, {of}")


def check_halvings(image_size: ImageSize, times: int) -> None:
    """Raise ValueError unless an image can be halved so many times."""
    check_multiple(2**times, f"the network halves images {times} time{'s' * (times != 1)}", image_size=image_size)


def check_levels(count: int, **levels: Sequence[int]) -> None:
    """Raise ValueError unless every level is one of 0 to count - 1."""
    for name, value in levels.items():
        if any(not 0 <= level < count for level in value):
            raise ValueError(f"{name}={value}: the network has levels 0 to {count - 1}")
