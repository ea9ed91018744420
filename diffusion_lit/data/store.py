"""All images of a split as one uint8 array, decoded once: in RAM, or in a file that runs and processes share."""

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from itertools import count
from pathlib import Path

import numpy as np

from diffusion_lit.data.build_lock import ReportProgress, build_once
from diffusion_lit.data.cache import CacheWriter, damaged_cache, read_cache
from diffusion_lit.data.decoding import Decoding, StoredImage, decode_images, decoding_from_config
from diffusion_lit.data.sources.data_source import DataSource, ImageStream, Split, fingerprint_images, split_validation
from diffusion_lit.data.streaming import MAX_VAL_IMAGES, EpochStream, StreamedStore, StreamedTable
from diffusion_lit.data.value_ranges import resolve_value_range
from diffusion_lit.imaging.sizes import ImageSize, grow_size, height_width
from diffusion_lit.system.console import progress_bar

CACHE_VERSION = 3  # of the file layout


@dataclass(frozen=True)
class ImageStore:
    """The decoded images of a split.

    Args:
        images: uint8 (N, C, H, W).
        labels: int64 (N,).
        file: the cache file, if there is one.
        checksums: CRC-32 of each image in it, (N,).
    """

    images: np.ndarray
    labels: np.ndarray
    file: Path | None = None
    checksums: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def fingerprint(self) -> str:
        """Return 16 hex digits that depend on pixels, labels and their order.

        Raises:
            DataError: if the pixels of a cache file do not match their checksums.
        """
        digest = hashlib.blake2b(repr(self.images.shape).encode(), digest_size=8)
        for start in range(0, len(self), 4096):  # in blocks, since a memory-mapped array may exceed the RAM
            block = np.ascontiguousarray(self.images[start : start + 4096])
            rows = slice(start, start + 4096)
            if self.checksums is not None and [*map(zlib.crc32, block)] != self.checksums[rows].tolist():
                raise damaged_cache(self.file)
            digest.update(block)
        digest.update(self.labels)
        return digest.hexdigest()


def load_split(split: Split, decoding: Decoding, cache_dir: str | None, name: str) -> ImageStore:
    """Decode a split into RAM, or with `cache_dir` into a memory-mapped file that other runs find.

    A stream is decoded as it arrives; its encoded images are not kept.
    """
    images, labels, stream_labels = split.images, split.labels, []
    n = None if labels is None else len(images)

    def decode(report: ReportProgress = lambda done, total: None) -> Iterator[np.ndarray]:
        if n is None:
            progress = _show_progress(images.total, name, report)
            return decode_images(_collect_labels(images, stream_labels), decoding, progress)
        return decode_images(range(n), lambda k: decoding(images[k]), _show_progress(n, name, report), n)

    if cache_dir is None:
        array = np.fromiter(decode(), np.dtype((np.uint8, decoding.shape)), -1 if n is None else n)
        return ImageStore(array, np.array(stream_labels, np.int64) if n is None else labels)

    def build(building: Path, report: ReportProgress) -> None:
        with open(building, "wb") as file:
            writer = CacheWriter(file, decoding.shape, n)
            for image in decode(report):
                writer.write(image)
            writer.finish(np.array(stream_labels, np.int64))

    path = Path(cache_dir).expanduser() / f"{name}-{_cache_key(split, decoding)}.npy"
    build_once(path, build)
    if n is None:
        images.on_cached()
    array, cached_labels, checksums = read_cache(path, n, decoding.shape)
    return ImageStore(array, cached_labels if n is None else labels, path, checksums)


def load_splits(source: DataSource, config: dict) -> tuple[ImageStore | StreamedStore, ImageStore | None]:
    """Return the training images of a `data` group and the validation images, None without any.

    With `random_crop` the training images are larger by that many pixels; validation images
    are their centers.
    """
    splits, cache_dir, fraction = source.splits(), config["cache_dir"], config["val_fraction"]
    decoding = decoding_from_config(resolve_value_range(config, splits))
    decoding = replace(decoding, image_size=grow_size(decoding.image_size, config["random_crop"]))
    splits = split_validation(splits, fraction)
    if isinstance(splits["train"].images, EpochStream):
        table, val_table = _open_tables(splits, cache_dir, fraction)
        train = StreamedStore(table, decoding)
        val = load_split(Split(val_table, None), decoding, cache_dir, "val") if len(val_table) else None
    else:
        train, val = load_split(splits["train"], decoding, cache_dir, "train"), None
        if "val" in splits:
            val = load_split(splits["val"], decoding, cache_dir, "val")
        elif splits["train"].labels is None:
            train, val = split_tail(train, fraction)
    if val:
        _ = val.fingerprint  # verifies the checksums; those of training images are verified at the first checkpoint
        val = center_crop(val, config["image_size"])
    return train, val


def _open_tables(
    splits: dict[str, Split], cache_dir: str | None, fraction: float
) -> tuple[StreamedTable, StreamedTable]:
    """Return the tables of training and of validation images; the latter are few, and decoded once."""
    train = splits["train"].images.open(cache_dir)
    if "val" not in splits:
        n_val = min(round(len(train) * fraction), len(train) - 1, MAX_VAL_IMAGES)
        return train.split_validation(n_val)
    val = splits["val"].images.open(cache_dir)
    return train, val.split_validation(min(len(val), MAX_VAL_IMAGES))[1]


def split_tail(store: ImageStore, fraction: float) -> tuple[ImageStore, ImageStore | None]:
    """Return views of the images without the last `fraction` of them, and of those, None if there are none."""
    n = len(store)
    n_val = min(round(n * fraction), n - 1)

    def view(rows: slice) -> ImageStore:
        checksums = None if store.checksums is None else store.checksums[rows]
        return ImageStore(store.images[rows], store.labels[rows], store.file, checksums)

    return view(slice(n - n_val)), view(slice(n - n_val, n)) if n_val else None


def center_crop(store: ImageStore, size: ImageSize) -> ImageStore:
    """Return a view of the center of every image, of this size, after the same margin was added on each axis."""
    height, width = height_width(size)
    margin = (store.images.shape[2] - height) // 2
    if not margin:
        return store
    return ImageStore(store.images[:, :, margin : margin + height, margin : margin + width], store.labels)


def _collect_labels(stream: ImageStream, labels: list[int]) -> Iterator[StoredImage]:
    for image, label in stream:
        labels.append(label)
        yield image


def _cache_key(split: Split, decoding: Decoding) -> str:
    """Return a digest that changes with the files, their sizes and times, and with the decoding."""
    text = f"{CACHE_VERSION} {astuple(decoding)} {fingerprint_images(split.images)}"
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _show_progress(total: int | None, name: str, report: ReportProgress) -> Iterator[int]:
    """Yield without end; each step advances the progress bar by one image."""
    with progress_bar(f"reading {name}", visible=total is None or total >= 2000, transient=True) as bar:
        for done in bar.track(count(), total, description=""):
            report(done, total)
            yield done
