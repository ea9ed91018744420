"""All images of a split as one uint8 array, decoded once: in RAM, or in a file that runs and processes share."""

import hashlib
import json
import math
import zlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, field, replace
from functools import cached_property
from itertools import count
from pathlib import Path

import numpy as np

from diffusion_lit.data.build_lock import ReportProgress, build_once
from diffusion_lit.data.cache import CacheWriter, damaged_cache, read_cache
from diffusion_lit.data.captions import Captions, complete_captions
from diffusion_lit.data.color_cache import load_colors
from diffusion_lit.data.decoding import Decoding, StoredImage, decode_images, decoding_from_config, report_broken_image
from diffusion_lit.data.sources.data_source import DataSource, ImageStream, Split, fingerprint_images
from diffusion_lit.data.streaming import MAX_VAL_IMAGES, StreamedStore, StreamedTable
from diffusion_lit.data.validation_split import NO_HASHES, KnownImages, hash_image, select_validation
from diffusion_lit.data.value_ranges import resolve_value_range
from diffusion_lit.imaging.sizes import ImageSize, grow_size, height_width
from diffusion_lit.system.console import progress_bar
from diffusion_lit.system.errors import DataError
from diffusion_lit.system.files import digest_text

CACHE_VERSION = 4  # of the file layout


@dataclass(frozen=True)
class ImageRows:
    """Some rows of an array of images, read when they are indexed, since a copy may exceed the RAM.

    Args:
        base: uint8 (M, C, H, W), perhaps memory-mapped.
        rows: int64 (N,).
    """

    base: np.ndarray
    rows: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (N, C, H, W)."""
        return len(self.rows), *self.base.shape[1:]

    @property
    def nbytes(self) -> int:
        """Return the size in bytes."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key) -> np.ndarray:
        first, *others = key if isinstance(key, tuple) else (key,)
        images = self.base[self.rows[first]]
        return images[:, *others] if others else images

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self.base[row] for row in self.rows)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self.base[self.rows]


@dataclass(frozen=True)
class ImageStore:
    """The decoded images of a split.

    Args:
        images: uint8 (N, C, H, W).
        labels: int64 (N,).
        file: the cache file, if there is one.
        checksums: CRC-32 of each image in it, (N,).
        hashes: of the content of each image before it was decoded, uint64 (N,), see
            `hash_image`.
        captions: of each image; None if there are none.
    """

    images: np.ndarray | ImageRows
    labels: np.ndarray
    file: Path | None = None
    checksums: np.ndarray | None = None
    hashes: np.ndarray = field(default_factory=NO_HASHES.copy)
    captions: Captions | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def fingerprint(self) -> str:
        """Return 16 hex digits that depend on pixels, labels, captions and their order.

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
        if self.captions is not None:
            digest.update(json.dumps(list(self.captions)).encode())
        return digest.hexdigest()


def load_split(split: Split, decoding: Decoding, cache_dir: str | None, name: str) -> ImageStore:
    """Decode a split into RAM, or with `cache_dir` into a memory-mapped file that other runs find.

    A stream is decoded as it arrives; its encoded images are not kept.
    """
    images, labels, stream_labels = split.images, split.labels, []
    n = None if labels is None else len(images)
    hashes = array("Q", bytes(8 * (n or 0)))

    def decode_one(item: tuple[int, StoredImage | None]) -> np.ndarray:
        k, image = item
        image = images[k] if image is None else image
        with report_broken_image(image):
            hashes[k], image = hash_image(image)
        return decoding(image)

    def decode(report: ReportProgress = lambda done, total: None) -> Iterator[np.ndarray]:
        total = images.total if n is None else n
        items = _number_images(images, stream_labels, hashes) if n is None else ((k, None) for k in range(n))
        return decode_images(items, decode_one, _show_progress(total, name, report), n)

    if cache_dir is None:
        decoded = np.fromiter(decode(), np.dtype((np.uint8, decoding.shape)), -1 if n is None else n)
        labels = np.array(stream_labels, np.int64) if n is None else labels
        return ImageStore(decoded, labels, hashes=np.array(hashes, np.uint64), captions=split.captions)

    def build(building: Path, report: ReportProgress) -> None:
        with open(building, "wb") as file:
            writer = CacheWriter(file, decoding.shape, n)
            for image in decode(report):
                writer.write(image)
            writer.finish(np.array(stream_labels, np.int64), np.array(hashes, np.uint64))

    path = Path(cache_dir).expanduser() / f"{name}-{_cache_key(split, decoding)}.npy"
    build_once(path, build)
    if n is None:
        images.on_cached()
    decoded, cached_labels, cached_hashes, checksums = read_cache(path, n, decoding.shape)
    labels = cached_labels if n is None else labels
    return ImageStore(decoded, labels, path, checksums, cached_hashes, split.captions)


def load_splits(
    source: DataSource, config: dict, known: KnownImages | None = None
) -> tuple[ImageStore | StreamedStore, ImageStore | None]:
    """Return the training images of a `data` group and the validation images, None without any.

    With `random_crop` the training images are larger by that many pixels; validation images
    are their centers.

    Args:
        source: of the images.
        config: the `data` group.
        known: images whose side is known, of the run that is resumed or evaluated.
    """
    splits, cache_dir, fraction = source.splits(), config["cache_dir"], config["val_fraction"]
    decoding = decoding_from_config(resolve_value_range(config, splits))
    decoding = replace(decoding, image_size=grow_size(decoding.image_size, config["random_crop"]))
    if hasattr(splits["train"].images, "open"):  # it is read again in every epoch
        table, val_table = _open_tables(splits, cache_dir, fraction)
        train = StreamedStore(table, decoding)
        val = load_split(Split(val_table, None), decoding, cache_dir, "val") if len(val_table) else None
    else:
        has_colors = config.get("caption_colors", False)
        stores = {name: load_split(split, decoding, cache_dir, name) for name, split in splits.items()}
        stores = {name: add_words(store, source.class_names, has_colors) for name, store in stores.items()}
        train, val = stores["train"], stores.get("val")
        if val:
            _refuse_exchanged(train, val, known or KnownImages())
        else:
            train, val = divide(train, fraction, splits["train"].groups, known)
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
        return train.split_validation(fraction, MAX_VAL_IMAGES)
    val = splits["val"].images.open(cache_dir)
    return train, val.limit(MAX_VAL_IMAGES)


def divide(
    store: ImageStore, fraction: float, groups: np.ndarray | None = None, known: KnownImages | None = None
) -> tuple[ImageStore, ImageStore | None]:
    """Return the training and the validation images of a store, None without any, see `select_validation`."""
    is_val = select_validation(store.hashes, store.labels, fraction, groups, known)
    if not is_val.any():
        return store, None
    return select_rows(store, np.flatnonzero(~is_val)), select_rows(store, np.flatnonzero(is_val))


def _refuse_exchanged(train: ImageStore, val: ImageStore, known: KnownImages) -> None:
    """Raise DataError for images whose split of their own differs from the one that they have had in the run."""
    for now, before, other, there in (("val", val, known.val, known.train), ("train", train, known.train, known.val)):
        moved = np.isin(before.hashes, there) & ~np.isin(before.hashes, other)
        if moved.any():
            was = "trained on" if now == "val" else "for validation"
            raise DataError(
                f"{moved.sum():,} images of the split {now} were {was} before. Move them back, or start a new run."
            )


def select_rows(store: ImageStore, rows: np.ndarray) -> ImageStore:
    """Return a view of the images at `rows`, int64 (N,), of a store that is no such view."""
    checksums = None if store.checksums is None else store.checksums[rows]
    captions = None if store.captions is None else [store.captions[row] for row in rows]
    images = ImageRows(store.images, rows)
    return ImageStore(images, store.labels[rows], store.file, checksums, store.hashes[rows], captions)


def add_words(store: ImageStore, class_names: Sequence[str], has_colors: bool) -> ImageStore:
    """Return the store with captions that have the words of classes, and of colors on request."""
    colors = load_colors(store.images, store.file) if has_colors else None
    return replace(store, captions=complete_captions(store.captions, store.labels, class_names, colors))


def center_crop(store: ImageStore, size: ImageSize) -> ImageStore:
    """Return a view of the center of every image, of this size, after the same margin was added on each axis."""
    height, width = height_width(size)
    margin = (store.images.shape[2] - height) // 2
    if not margin:
        return store

    def crop(array: np.ndarray) -> np.ndarray:
        return array[:, :, margin : margin + height, margin : margin + width]

    images = store.images
    images = ImageRows(crop(images.base), images.rows) if isinstance(images, ImageRows) else crop(images)
    return ImageStore(images, store.labels, hashes=store.hashes, captions=store.captions)


def _number_images(stream: ImageStream, labels: list[int], hashes: array) -> Iterator[tuple[int, StoredImage]]:
    """Yield the images of a stream with their numbers. Each adds its label, and a place for its hash."""
    for k, (image, label) in enumerate(stream):
        labels.append(label)
        hashes.append(0)
        yield k, image


def _cache_key(split: Split, decoding: Decoding) -> str:
    """Return a digest that changes with the files, their sizes and times, and with the decoding."""
    return digest_text(f"{CACHE_VERSION} {astuple(decoding)} {fingerprint_images(split.images)}")


def _show_progress(total: int | None, name: str, report: ReportProgress) -> Iterator[int]:
    """Yield without end; each step advances the progress bar by one image."""
    with progress_bar(f"reading {name}", visible=total is None or total >= 2000, transient=True) as bar:
        for done in bar.track(count(), total, description=""):
            report(done, total)
            yield done
