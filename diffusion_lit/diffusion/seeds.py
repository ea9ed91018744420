"""Seeds: every random number here is a function of the run's seed and a position, never of the past."""

import hashlib
from collections.abc import Hashable, Sequence
from typing import NamedTuple


class Between(NamedTuple):
    """A place on the way from the noise of one seed, at share 0, to that of another, at share 1."""

    first: int
    second: int
    share: float


Seed = int | Between  # of an image


def fold(seed: int, *words: object) -> int:
    """A 32-bit seed that depends on `seed` and all `words` (torch's CPU generator reads 32 bits, no more)."""
    text = "/".join(map(str, (seed, *words)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")


def counted(seed: int, purpose: str, number: int) -> int:
    """Seed of item `number` for a purpose. Two items of one purpose never share a seed (up to 2^32 items)."""
    return (fold(seed, purpose) + number) % 2**32


def image_seeds(seed: int, num_images: int) -> list[int]:
    """Seeds of generated images 0, 1, ...; image k depends on its own seed and label, not on how many are made."""
    return [counted(seed, "image", k) for k in range(num_images)]


def column_seeds(seed: int, labels: Sequence[Hashable]) -> list[int]:
    """Seeds of generated images by their place among those of their label: image j of every label has the same."""
    places: dict[Hashable, int] = {}
    columns = []
    for label in labels:
        columns.append(places.get(label, 0))
        places[label] = columns[-1] + 1
    return [counted(seed, "image", column) for column in columns]
