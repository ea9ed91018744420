"""The order of images: one endless stream, in which position p holds image perm(seed, p // n)[p % n]."""

import itertools
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from diffusion_lit.data.store import ImageStore
from diffusion_lit.data.streaming import Streamed
from diffusion_lit.diffusion.seeds import counted

AHEAD = 4  # micro-batches that are decoded before they are asked for


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


def windows(images: np.ndarray, size: int, seed: int, position: int) -> np.ndarray:
    """A random size x size window of each image (B, C, H, W), by its position in the stream."""
    room = images.shape[2] - size
    if not room:
        return images
    seeds = (counted(seed, "crop", position + k) for k in range(len(images)))
    places = [np.random.Generator(np.random.PCG64(one)).integers(0, room + 1, 2) for one in seeds]
    return np.stack([image[:, y : y + size, x : x + size] for image, (y, x) in zip(images, places, strict=True)])


class Batches:
    """Endless micro-batches of one rank: dicts of `image` uint8 (B, C, H, W), `y` and `index` int64 (B,), `position`.

    Args:
        batch_size: B, the micro-batch of one rank.
        accumulate, rank, world: a global batch is accumulate x world micro-batches, rank r's in between the others'.
        step: the optimizer step to start from, asked for when iteration starts (a resumed run has set it by then).
        image_size: of larger pictures a random window of this size is taken; None: they are taken as they are.
    """

    def __init__(
        self,
        store: ImageStore | Streamed,
        seed: int,
        batch_size: int,
        step: Callable[[], int],
        accumulate: int = 1,
        rank: int = 0,
        world: int = 1,
        image_size: int | None = None,
    ):
        self.store, self.seed, self.batch_size, self.step = store, seed, batch_size, step
        self.accumulate, self.rank, self.world = accumulate, rank, world
        self.image_size = image_size or store.images.shape[2]

    def __iter__(self) -> Iterator[dict]:
        first = (self.step() * self.accumulate * self.world + self.rank) * self.batch_size
        found = self._read(first) if isinstance(self.store, Streamed) else None
        for position in itertools.count(first, self.world * self.batch_size):
            images, labels, index = next(found) if found else self._stored(position)
            yield {
                "image": torch.from_numpy(windows(images, self.image_size, self.seed, position)),
                "y": torch.from_numpy(labels),
                "index": torch.from_numpy(index),
                "position": position,
            }

    def _stored(self, position: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        index = indices(self.seed, position, self.batch_size, len(self.store)).numpy()
        return self.store.images[index], self.store.labels[index], index

    def _read(self, first: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Micro-batches from position `first` on, decoded in threads, some before they are asked for. What belongs to
        other ranks is passed over undecoded."""
        warnings.filterwarnings("ignore", module="PIL")  # corrupt EXIF and large-picture notes; errors still raise
        rows = self.store.pictures.walk(self.seed, first)
        others, ahead, pool = (self.world - 1) * self.batch_size, deque(), ThreadPoolExecutor()
        try:
            while True:
                while len(ahead) < AHEAD:
                    index, pictures, labels = zip(*itertools.islice(rows, self.batch_size), strict=True)
                    next(itertools.islice(rows, others, others), None)
                    ahead.append((pool.map(self.store.decoding, pictures), labels, index))
                images, labels, index = ahead.popleft()
                yield np.stack(list(images)), np.array(labels, np.int64), np.array(index, np.int64)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
