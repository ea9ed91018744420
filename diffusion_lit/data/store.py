"""All pictures of a split as one uint8 array, decoded once: in RAM, or in a file that runs and processes share."""

import hashlib
import io
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from itertools import count
from pathlib import Path

import numpy as np

from diffusion_lit.data import cache
from diffusion_lit.data.build_lock import Tell, built_once
from diffusion_lit.data.decoding import Decoding, decode_all, decode_stream, decoding_of
from diffusion_lit.data.sources.folder import Rows, Split, Stream, fingerprint, hold_out
from diffusion_lit.data.streaming import MOST_HELD_OUT, Reread, Streamed
from diffusion_lit.imaging.sizes import ImageSize, enlarge, height_width
from diffusion_lit.system.console import progress_bar


@dataclass(frozen=True)
class ImageStore:
    """images uint8 (N, C, H, W) and labels int64 (N,); of a cache file also its path and CRC-32 sums (N,)."""

    images: np.ndarray
    labels: np.ndarray
    file: Path | None = None
    sums: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of what is in it: pixels, labels and their order.

        Raises:
            UserError: exit 3 if the pixels are not those that were once written to the cache.
        """
        digest = hashlib.blake2b(repr(self.images.shape).encode(), digest_size=8)
        for start in range(0, len(self), 4096):  # a memory-mapped array is never read whole
            block = np.ascontiguousarray(self.images[start : start + 4096])
            if self.sums is not None and [*map(zlib.crc32, block)] != self.sums[start : start + 4096].tolist():
                raise cache.damaged(self.file)
            digest.update(block)
        digest.update(self.labels)
        return digest.hexdigest()


def load(split: Split, decoding: Decoding, cache_dir: str | None, name: str) -> ImageStore:
    """Decode a split into RAM, or with `cache_dir` into a memory-mapped file that others find.

    A stream is decoded as it arrives; nothing of the originals is kept.
    """
    streamed, shape = split.labels is None, decoding.shape
    if cache_dir is None:
        return (_streamed if streamed else _decoded)(split, decoding, shape, name)
    path = Path(cache_dir).expanduser() / f"{name}-{_key(split.pictures, decoding)}.npy"

    def build(building: Path, tell: Tell) -> None:
        if streamed:
            with open(building, "wb") as file:
                out = cache.Growing(file, shape)
                out.finish(decode_stream(split.pictures, decoding, out, _progress(split.pictures.total, name, tell)))
        else:
            out = cache.Pictures(building, (len(split.pictures), *shape))
            decode_all(split.pictures, decoding, out, _progress(len(split.pictures), name, tell))
            out.finish()

    built_once(path, build)
    if streamed:
        split.pictures.remember()
    images, labels, sums = cache.read(path, None if streamed else len(split.pictures), shape)
    return ImageStore(images, labels if streamed else split.labels, path, sums)


def load_splits(source, config: dict) -> tuple[ImageStore | Streamed, ImageStore | None]:
    """The training pictures of a `data` group and those held out (None: none).

    With `random_crop` the training pictures are that much larger, held-out ones are cut already.
    """
    decoding = decoding_of(config)
    decoding = replace(decoding, image_size=enlarge(decoding.image_size, config["random_crop"]))
    splits = hold_out(source.splits(), config["val_fraction"])
    if isinstance(splits["train"].pictures, Reread):
        return _read_anew(splits, config, decoding)
    train, val = load(splits["train"], decoding, config["cache_dir"], "train"), None
    if "val" in splits:
        val = load(splits["val"], decoding, config["cache_dir"], "val")
    elif splits["train"].labels is None:
        train, val = cut(train, config["val_fraction"])
    return train, centre(sound(val), config["image_size"]) if val else None


def sound(store: ImageStore) -> ImageStore:
    """The same, every pixel compared with what was once written: of training pictures a checkpoint sees to that."""
    _ = store.fingerprint
    return store


def _read_anew(splits: dict[str, Split], config: dict, decoding: Decoding) -> tuple[Streamed, ImageStore | None]:
    """Held-out pictures are few, and kept."""
    train, cache_dir = splits["train"].pictures.anew(config["cache_dir"]), config["cache_dir"]
    if "val" in splits:
        val = splits["val"].pictures.anew(cache_dir)
        val = val.hold_out(min(len(val), MOST_HELD_OUT))[1]
    else:
        train, val = train.hold_out(min(round(len(train) * config["val_fraction"]), len(train) - 1, MOST_HELD_OUT))
    kept = load(Split(val, None), decoding, cache_dir, "val") if len(val) else None
    return Streamed(train, decoding), centre(sound(kept), config["image_size"]) if kept else None


def cut(store: ImageStore, fraction: float) -> tuple[ImageStore, ImageStore | None]:
    """The pictures without the last `fraction` of them, and those (None: none); views, nothing is copied."""
    n = len(store)
    held_out = min(round(n * fraction), n - 1)

    def part(rows: slice) -> ImageStore:
        sums = None if store.sums is None else store.sums[rows]
        return ImageStore(store.images[rows], store.labels[rows], store.file, sums)

    return part(slice(n - held_out)), part(slice(n - held_out, n)) if held_out else None


def centre(store: ImageStore, size: ImageSize) -> ImageStore:
    """The middle of every picture, of this size; a view. Pictures are larger by the same number on each axis."""
    height, width = height_width(size)
    edge = (store.images.shape[2] - height) // 2
    if not edge:
        return store
    return ImageStore(store.images[:, :, edge : edge + height, edge : edge + width], store.labels)


def _decoded(split: Split, decoding: Decoding, shape: tuple[int, int, int], name: str) -> ImageStore:
    images = np.empty((len(split.pictures), *shape), np.uint8)
    decode_all(split.pictures, decoding, images, _progress(len(images), name))
    return ImageStore(images, split.labels)


def _streamed(split: Split, decoding: Decoding, shape: tuple[int, int, int], name: str) -> ImageStore:
    grown = io.BytesIO()
    labels = decode_stream(split.pictures, decoding, grown, _progress(split.pictures.total, name))
    return ImageStore(np.frombuffer(grown.getbuffer(), np.uint8).reshape(len(labels), *shape), labels)


def _key(pictures: Sequence[Path] | np.ndarray | Rows | Stream, decoding: Decoding) -> str:
    """Changes when a file, its size, its time or the way of decoding changes."""
    words = f"2 {astuple(decoding)} {fingerprint(pictures)}"  # 2: how the file is laid out
    return hashlib.blake2b(words.encode(), digest_size=8).hexdigest()


def _progress(total: int | None, name: str, tell: Tell = lambda done, total: None) -> Iterator[int]:
    """To be advanced once a picture; it never ends by itself."""
    with progress_bar(f"reading {name}", shown=total is None or total >= 2000, transient=True) as bar:
        for done in bar.track(count(), total, description=""):
            tell(done, total)
            yield done
