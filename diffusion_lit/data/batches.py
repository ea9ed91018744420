"""The order of images: one endless stream, whose position p holds image permutation(seed, p // n)[p % n]."""

import itertools
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from diffusion_lit.data.captions import select_captions
from diffusion_lit.data.device_images import DeviceImages, copy_to_device, fits_on_device, place_on_device
from diffusion_lit.data.store import ImageStore
from diffusion_lit.data.streaming import StreamedStore
from diffusion_lit.diffusion.seeds import item_seed
from diffusion_lit.imaging.sizes import ImageSize, height_width
from diffusion_lit.system.errors import DataError

VALIDATION_BATCH = 64  # images, whatever the training batch is
CROP_BLOCK = 128  # positions whose crops come from one generator
BROKEN_ROW = (
    "Repair or remove it, then continue with resume=<run> accept=[data]. With "
    "data.streaming=false all such images are found before training, and data.exclude leaves them out"
)
PREFETCH = 4  # micro-batches of a streamed table that are decoded ahead


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, n: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(item_seed(seed, "order", epoch)))


def stream_indices(seed: int, start: int, count: int, n: int) -> Tensor:
    """Return the image indices at positions start to start + count - 1, int64 (count,).

    Positions k * n to (k + 1) * n - 1 hold every image once.
    """
    parts = []
    while count > 0:
        epoch, offset = divmod(start, n)
        parts.append(_permutation(seed, epoch, n)[offset : offset + count])
        start, count = start + len(parts[-1]), count - len(parts[-1])
    return torch.cat(parts)


def random_crops(images: np.ndarray, size: ImageSize, seed: int, position: int) -> np.ndarray:
    """Return a random window of each image.

    Args:
        images: uint8 (B, C, H, W).
        size: of the windows; smaller by the same number of pixels on each axis
            (`data.random_crop`).
        seed: of the run.
        position: of the first image in the stream.
    """
    height, width = height_width(size)
    margin = images.shape[2] - height
    if not margin:
        return images
    y, x = draw_crop_offsets(seed, position, len(images), margin)
    windows = np.lib.stride_tricks.sliding_window_view(images, (height, width), axis=(2, 3))
    return np.ascontiguousarray(windows[np.arange(len(images)), :, y, x])


def draw_crop_offsets(seed: int, start: int, count: int, margin: int) -> np.ndarray:
    """Return the rows and columns of the windows at positions start to start + count - 1, int64 (2, count).

    They are drawn in blocks of positions, each from a generator of its own, so they do not depend
    on the division of the stream into batches.

    Args:
        seed: of the run.
        start: first position in the stream.
        count: number of positions.
        margin: the largest offset.
    """
    blocks = range(start // CROP_BLOCK, -(-(start + count) // CROP_BLOCK))
    generators = [np.random.Generator(np.random.PCG64(item_seed(seed, "crop", block))) for block in blocks]
    offsets = np.concatenate([random.integers(0, margin + 1, (2, CROP_BLOCK)) for random in generators], axis=1)
    first = start % CROP_BLOCK
    return offsets[:, first : first + count]


def apply_transforms(images: Tensor, transforms: Sequence[Callable], seed: int, position: int) -> Tensor:
    """Apply transforms to uint8 images (B, C, H, W), one by one.

    What they draw from torch's global generator is a function of the seed and the position
    of the image.

    Raises:
        DataError: if a transform changes the shape or the type.
    """
    if not transforms:
        return images
    before, results = torch.get_rng_state(), []
    for k, image in enumerate(images):
        torch.default_generator.manual_seed(item_seed(seed, "transforms", position + k))
        for transform in transforms:
            out = transform(image)
            if out.shape != image.shape or out.dtype != torch.uint8:
                name, kind = type(transform).__name__, f"{str(out.dtype).removeprefix('torch.')} {tuple(out.shape)}"
                raise DataError(
                    f"data.transforms: {name} made {kind} of uint8 {tuple(image.shape)}. "
                    "Use transforms that keep type and shape."
                )
            image = out
        results.append(image)
    torch.set_rng_state(before)
    return torch.stack(results)


class Batches:
    """Micro-batches of one rank: dicts of `image` uint8 (B, C, H, W), `y` and `index` int64 (B,), `position`, `flip`.

    `len` is an epoch for Lightning, in complete optimizer steps. Iteration itself does not
    end there, since the next epoch would begin with the same batch: both continue from the
    step.

    Args:
        store: the images.
        seed: decides order, crops and transforms.
        batch_size: B, the micro-batch of one rank.
        step: returns the optimizer step to start from. It is called when iteration starts;
            a resumed run has set it by then.
        accumulate: micro-batches of a step.
        rank: of this process. The micro-batches of all ranks alternate in the stream.
        world: number of processes.
        image_size: of larger images a random window of this size is taken; None: images
            stay as they are.
        flip: probability of mirroring, passed on to the training step.
        transforms: see `apply_transforms`.
        device: where the batches are; None for the CPU. A small set is kept on a GPU.
    """

    def __init__(
        self,
        store: ImageStore | StreamedStore,
        seed: int,
        batch_size: int,
        step: Callable[[], int],
        accumulate: int = 1,
        rank: int = 0,
        world: int = 1,
        image_size: ImageSize | None = None,
        flip: float = 0.0,
        transforms: Sequence[Callable[[Tensor], Tensor]] = (),
        device: torch.device | None = None,
    ):
        self.store, self.seed, self.batch_size, self.step = store, seed, batch_size, step
        self.accumulate, self.rank, self.world = accumulate, rank, world
        self.image_size = image_size or store.images.shape[2:]
        self.flip, self.transforms, self.device = flip, transforms, device

    @cached_property
    def on_device(self) -> DeviceImages | None:
        """Return the images on the device; None where they do not fit, or are cropped or transformed one by one."""
        if self.transforms or not fits_on_device(self.store, self.device):
            return None
        is_cropped = tuple(self.store.images.shape[2:]) != height_width(self.image_size)
        return None if is_cropped else place_on_device(self.store, self.device)

    def __len__(self) -> int:
        return -(-len(self.store) // (self.batch_size * self.accumulate * self.world)) * self.accumulate

    def state_dict(self) -> dict:
        """Return nothing: where to continue follows from the step. Lightning looks for the method."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Do nothing."""

    def __iter__(self) -> Iterator[dict]:
        first = (self.step() * self.accumulate * self.world + self.rank) * self.batch_size
        streamed = self._decode_ahead(first) if isinstance(self.store, StreamedStore) else None
        for position in itertools.count(first, self.world * self.batch_size):
            if self.on_device:
                image, y, index = self.on_device.gather(self._indices(position))
            else:
                arrays = next(streamed) if streamed else self._load_stored(position)
                image, y, index = (copy_to_device(tensor, self.device) for tensor in self._prepare(position, *arrays))
            batch = {"image": image, "y": y, "index": index, "position": position, "flip": self.flip}
            if self.store.captions:
                rows = self._indices(position).tolist()
                batch["caption"] = select_captions(self.store.captions, rows, self.seed, position)
            yield batch

    def _indices(self, position: int) -> Tensor:
        return stream_indices(self.seed, position, self.batch_size, len(self.store))

    def _load_stored(self, position: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        index = self._indices(position).numpy()
        return self.store.images[index], self.store.labels[index], index

    def _prepare(self, position: int, images: np.ndarray, labels: np.ndarray, index: np.ndarray) -> tuple[Tensor, ...]:
        image = torch.from_numpy(random_crops(images, self.image_size, self.seed, position))
        image = apply_transforms(image, self.transforms, self.seed, position)
        return image, torch.from_numpy(labels), torch.from_numpy(index)

    def _decode_ahead(self, first: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield micro-batches from position `first` on, decoded in threads; those of other ranks are skipped."""
        warnings.filterwarnings("ignore", module="PIL")  # corrupt EXIF and large images; errors still raise
        rows = self.store.table.iterate(self.seed, first)
        others, ahead, pool = (self.world - 1) * self.batch_size, deque(), ThreadPoolExecutor()
        try:
            while True:
                while len(ahead) < PREFETCH:
                    index, images, labels = zip(*itertools.islice(rows, self.batch_size), strict=True)
                    next(itertools.islice(rows, others, others), None)
                    ahead.append((pool.map(self.store.decoding, images), labels, index))
                images, labels, index = ahead.popleft()
                yield np.stack(list(images)), np.array(labels, np.int64), np.array(index, np.int64)
        except DataError as error:
            raise DataError(f"{error}. {BROKEN_ROW}") from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class ValidationBatches:
    """A fixed random order of the validation images, in dicts like those of `Batches`.

    Batches are the same for every number of ranks up to `num_images` / 64, and
    rank r gets batches r, r + world, ...: sums over all of them do not depend
    on that number. With more ranks batches are smaller, so that every rank has
    one.

    Args:
        store: the validation images.
        num_images: images of a validation; a smaller store repeats them, with other noise
            and timesteps.
        rank: of this process.
        world: number of processes.
        device: where the batches are; None for the CPU.
    """

    def __init__(
        self, store: ImageStore, num_images: int, rank: int = 0, world: int = 1, device: torch.device | None = None
    ):
        num_images = max(num_images, world)
        self.batch_size = min(VALIDATION_BATCH, num_images // world)
        order = torch.randperm(len(store), generator=torch.Generator().manual_seed(item_seed(0, "validation order", 0)))
        self.order = order.repeat(-(-num_images // len(store)))[:num_images]
        self.store, self.device = store, device
        self.starts = range(rank * self.batch_size, num_images, world * self.batch_size)

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[dict]:
        for start in self.starts:
            rows = self.order[start : start + self.batch_size].numpy()
            arrays = self.store.images[rows], self.store.labels[rows], rows
            image, y, index = (copy_to_device(torch.from_numpy(array), self.device) for array in arrays)
            batch = {"image": image, "y": y, "index": index, "position": start}
            if self.store.captions:
                batch["caption"] = select_captions(self.store.captions, rows.tolist(), 0, None)
            yield batch
