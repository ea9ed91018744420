"""The order of images: one endless stream, in which position p holds image perm(seed, p // n)[p % n]."""

import itertools
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from diffusion_lit.data.store import ImageStore
from diffusion_lit.data.streaming import Streamed
from diffusion_lit.diffusion.seeds import counted
from diffusion_lit.imaging.sizes import ImageSize, height_width
from diffusion_lit.system.errors import Exit, UserError

VALIDATION_BATCH = 64  # images at a time, whatever the training batch is
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


def windows(images: np.ndarray, size: ImageSize, seed: int, position: int) -> np.ndarray:
    """A random window of this size of each image (B, C, H, W), by its position in the stream."""
    height, width = height_width(size)
    room = images.shape[2] - height  # the same on each axis, data.random_crop
    if not room:
        return images
    seeds = (counted(seed, "crop", position + k) for k in range(len(images)))
    places = [np.random.Generator(np.random.PCG64(one)).integers(0, room + 1, 2) for one in seeds]
    return np.stack([image[:, y : y + height, x : x + width] for image, (y, x) in zip(images, places, strict=True)])


def apply_transforms(images: Tensor, transforms: Sequence[Callable], seed: int, position: int) -> Tensor:
    """Apply transforms to uint8 images (B, C, H, W), one by one: what they draw from torch's global generator is a
    function of the seed and the position of the image.

    Raises:
        UserError: exit 3 if a transform changes the shape or the type.
    """
    if not transforms:
        return images
    before, done = torch.get_rng_state(), []
    for k, image in enumerate(images):
        torch.default_generator.manual_seed(counted(seed, "transforms", position + k))
        for transform in transforms:
            out = transform(image)
            if out.shape != image.shape or out.dtype != torch.uint8:
                name, kind = type(transform).__name__, f"{str(out.dtype).removeprefix('torch.')} {tuple(out.shape)}"
                raise UserError(
                    Exit.DATA,
                    f"data.transforms: {name} made {kind} of uint8 {tuple(image.shape)}. "
                    "Use transforms that keep type and shape.",
                )
            image = out
        done.append(image)
    torch.set_rng_state(before)
    return torch.stack(done)


class Batches:
    """Micro-batches of one rank: dicts of `image` uint8 (B, C, H, W), `y` and `index` int64 (B,), `position`, `flip`.

    `len` is an epoch for Lightning, in whole optimizer steps. Iteration itself does not end there: the next epoch
    would begin with the same batch, since both continue from the step.

    Args:
        batch_size: B, the micro-batch of one rank.
        accumulate, rank, world: a global batch is accumulate x world micro-batches, rank r's in between the others'.
        step: returns the optimizer step to start from; called when iteration starts (a resumed run has set it by then).
        image_size: of larger images a random window of this size is taken; None: they are taken as they are.
        flip: probability of mirroring, handed on to the training step.
        transforms: see `apply_transforms`.
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
        image_size: ImageSize | None = None,
        flip: float = 0.0,
        transforms: Sequence[Callable[[Tensor], Tensor]] = (),
    ):
        self.store, self.seed, self.batch_size, self.step = store, seed, batch_size, step
        self.accumulate, self.rank, self.world = accumulate, rank, world
        self.image_size = image_size or store.images.shape[2:]
        self.flip, self.transforms = flip, transforms

    def __len__(self) -> int:
        return -(-len(self.store) // (self.batch_size * self.accumulate * self.world)) * self.accumulate

    def state_dict(self) -> dict:
        """Return nothing: where to continue follows from the step. Lightning looks for the method."""
        return {}

    def load_state_dict(self, state: dict) -> None: ...

    def __iter__(self) -> Iterator[dict]:
        first = (self.step() * self.accumulate * self.world + self.rank) * self.batch_size
        found = self._read(first) if isinstance(self.store, Streamed) else None
        for position in itertools.count(first, self.world * self.batch_size):
            images, labels, index = next(found) if found else self._stored(position)
            image = torch.from_numpy(windows(images, self.image_size, self.seed, position))
            yield {
                "image": apply_transforms(image, self.transforms, self.seed, position),
                "y": torch.from_numpy(labels),
                "index": torch.from_numpy(index),
                "position": position,
                "flip": self.flip,
            }

    def _stored(self, position: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        index = indices(self.seed, position, self.batch_size, len(self.store)).numpy()
        return self.store.images[index], self.store.labels[index], index

    def _read(self, first: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Micro-batches from position `first` on, decoded in threads, some before they are asked for. What belongs to
        other ranks is passed over undecoded.
        """
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


class ValidationBatches:
    """A fixed random order of the validation images, in dicts like those of `Batches`.

    Batches are the same for every number of ranks up to `num_images` / 64, and rank r gets batches r, r + world, ...:
    sums over all of them do not depend on that number. With more ranks batches are smaller, so that every rank has one.

    Args:
        num_images: images that are served; of a smaller store some more than once, with other noise and timesteps.
    """

    def __init__(self, store: ImageStore, num_images: int, rank: int = 0, world: int = 1):
        num_images = max(num_images, world)
        self.batch_size = min(VALIDATION_BATCH, num_images // world)
        order = torch.randperm(len(store), generator=torch.Generator().manual_seed(counted(0, "validation order", 0)))
        self.order = order.repeat(-(-num_images // len(store)))[:num_images]
        self.store = store
        self.starts = range(rank * self.batch_size, num_images, world * self.batch_size)

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[dict]:
        for start in self.starts:
            index = self.order[start : start + self.batch_size].numpy()
            image, y = torch.from_numpy(self.store.images[index]), torch.from_numpy(self.store.labels[index])
            yield {"image": image, "y": y, "index": torch.from_numpy(index), "position": start}
