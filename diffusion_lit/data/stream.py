"""The order of images: one endless stream, in which position p holds image perm(seed, p // n)[p % n]."""

from collections.abc import Callable, Iterator
from functools import lru_cache

import torch
from torch import Tensor

from diffusion_lit.data.store import ImageStore
from diffusion_lit.seeds import counted


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, n: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(counted(seed, "order", epoch)))


def indices(seed: int, start: int, count: int, n: int) -> Tensor:
    """Image indices int64 (count,) at positions start .. start + count - 1; every n positions see every image once."""
    parts = []
    while count > 0:
        epoch, place = divmod(start, n)
        parts.append(_permutation(seed, epoch, n)[place : place + count])
        start, count = start + len(parts[-1]), count - len(parts[-1])
    return torch.cat(parts)


class Batches:
    """Endless micro-batches of one rank: dicts of `image` uint8 (B, C, H, W), `y` and `index` int64 (B,), `position`.

    Args:
        batch_size: B, the micro-batch of one rank.
        accumulate, rank, world: a global batch is accumulate x world micro-batches, rank r's in between the others'.
        step: the optimizer step to start from, asked for when iteration starts (a resumed run has set it by then).
    """

    def __init__(
        self,
        store: ImageStore,
        seed: int,
        batch_size: int,
        step: Callable[[], int],
        accumulate: int = 1,
        rank: int = 0,
        world: int = 1,
    ):
        self.store, self.seed, self.batch_size, self.step = store, seed, batch_size, step
        self.accumulate, self.rank, self.world = accumulate, rank, world

    def __iter__(self) -> Iterator[dict]:
        micro_batch = self.step() * self.accumulate
        while True:
            position = (micro_batch * self.world + self.rank) * self.batch_size
            index = indices(self.seed, position, self.batch_size, len(self.store))
            yield {
                "image": torch.from_numpy(self.store.images[index.numpy()]),
                "y": torch.from_numpy(self.store.labels[index.numpy()]),
                "index": index,
                "position": position,
            }
            micro_batch += 1
