"""Seeds: every random number is a function of the run's seed and a position, never of earlier draws."""

import hashlib
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple


class InterpolatedSeed(NamedTuple):
    """Stands for noise between that of two seeds, at `fraction` in [0, 1] of the way to the second."""

    first: int
    second: int
    fraction: float


Seed = int | InterpolatedSeed  # of an image


def derive_seed(seed: int, *keys: object) -> int:
    """Return a 32-bit seed that depends on `seed` and all `keys`.

    torch's CPU generator reads 32 bits, no more.
    """
    text = "/".join(map(str, (seed, *keys)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")


def item_seed(seed: int, purpose: str, index: int) -> int:
    """Return the seed of one item of a purpose; up to 2^32 items have different seeds."""
    return (derive_seed(seed, purpose) + index) % 2**32


def image_seeds(seed: int, num_images: int) -> list[int]:
    """Return the seeds of generated images 0, 1, ...; that of image k does not depend on `num_images`."""
    return [item_seed(seed, "image", k) for k in range(num_images)]


def mix_seeds(first: Sequence[int], second: Sequence[int], fraction: float) -> list[Seed]:
    """Return the seed of each image, `fraction` in [0, 1] of the way from the first to the second."""
    if not fraction:
        return list(first)
    return [InterpolatedSeed(*pair, fraction) for pair in zip(first, second, strict=True)]


def column_seeds(seed: int, labels: Sequence[Hashable]) -> list[int]:
    """Return seeds such that image j of every label has the same seed."""
    counts: Counter = Counter()
    seeds = []
    for label in labels:
        seeds.append(item_seed(seed, "image", counts[label]))
        counts[label] += 1
    return seeds
