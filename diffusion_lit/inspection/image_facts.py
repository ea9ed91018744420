"""Measure each image of a data set before training, and find the ones that are the same."""

import hashlib
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from diffusion_lit.data.captions import complete_captions, describe_captions
from diffusion_lit.data.decoding import (
    Decoding,
    Encoded,
    decoding_from_config,
    has_alpha,
    load_upright,
    map_in_order,
    open_8_bits,
    open_image,
    report_broken_image,
)
from diffusion_lit.data.sources.data_source import DataSource, Split
from diffusion_lit.data.validation_split import hash_image, select_validation
from diffusion_lit.data.value_ranges import read_deep_values
from diffusion_lit.imaging.color_names import name_colors
from diffusion_lit.inspection.tile_sheets import FOUND, GridScore, find_tile_size, score_grids
from diffusion_lit.system.console import escape_controls
from diffusion_lit.system.errors import DataError

log = logging.getLogger(__name__)
MAX_SHEETS = 8  # images in which training looks for tiles: sheets are few, and a large one takes a second or two
THUMBNAIL = 8  # px; thumbnails are compared to find near duplicates
FEW_COLORS = 64
LOSSY = ("JPEG", "MPO", "WEBP", "AVIF", "JPEG2000")
AXES = 12  # principal axes of thumbnails, in which candidates for near duplicates are searched


@dataclass(frozen=True)
class ImageFacts:
    """One image: how it is stored, and what is compared with others.

    Args:
        name: what messages call it.
        error: why it cannot be read; the other fields are then not set.
        hash: of its content, see `hash_image`.
        mode: Pillow's mode.
        size: (width, height), upright.
        is_deep: more than 8 bits a channel.
        clipped: share of its values outside of `data.value_range`.
        is_animated: has several frames.
        alpha: "none", "opaque" (255 everywhere), "used" or "empty" (0 everywhere).
        has_hard_alpha: its alpha is 0 or 255 everywhere.
        has_hidden_colors: has colors under alpha 0.
        is_gray: red, green and blue are equal.
        has_few_colors: is small and has at most `FEW_COLORS`.
        digest: of the pixels that the network would get.
        thumbnail: uint8 (8, 8, 4), colors times alpha, and alpha.
        grids: how it could be cut into tiles, see `score_grids`.
        colors: its main colors in words, for `data.caption_colors`.
    """

    name: str
    error: str | None = None
    hash: int = 2**64 - 1
    mode: str = ""
    size: tuple[int, int] = (0, 0)
    is_deep: bool = False
    clipped: float = 0.0
    is_animated: bool = False
    alpha: str = "none"
    has_hard_alpha: bool = True
    has_hidden_colors: bool = False
    is_gray: bool = False
    has_few_colors: bool = False
    digest: bytes = b""
    thumbnail: np.ndarray | None = None
    grids: dict[int, GridScore] = field(default_factory=dict)
    colors: tuple[str, ...] = ()


def inspect_images(splits: dict[str, Split], decoding: Decoding, has_colors: bool = False) -> Iterator[ImageFacts]:
    """Yield the facts of the images of every split, in order, with colors on request."""

    def inspect_one(task: tuple[str, int]) -> ImageFacts:
        split, k = task
        name = image = f"row {k} of {split}"
        try:
            image = splits[split].images[k]  # a row of a table may have none
            if not isinstance(image, np.ndarray):
                name = os.fsencode(str(image)).decode(errors="backslashreplace")  # some file names are not valid text
            with report_broken_image(image):
                content_hash, image = hash_image(image)
            return replace(inspect_image(image, name, decoding, has_colors), hash=content_hash)
        except DataError as error:
            shown = escape_controls(str(image))
            return ImageFacts(name, error=str(error).removeprefix(f"{shown}: "))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tasks = [(name, k) for name, split in splits.items() for k in range(len(split.labels))]
        yield from map_in_order(inspect_one, tasks)


def inspect_image(
    image: Path | Encoded | np.ndarray, name: str, decoding: Decoding, has_colors: bool = False
) -> ImageFacts:
    """Return the facts of one image. Raise DataError if it cannot be read."""
    values, (low, high) = read_deep_values(image, decoding.max_pixels), decoding.value_range or (0, 0)
    with report_broken_image(image), open_8_bits(image, decoding) as opened:
        mode, is_animated = opened.mode, getattr(opened, "is_animated", False)
        if values is not None:
            mode = str(values.dtype) if isinstance(image, np.ndarray) else open_image(image, decoding.max_pixels).mode
        is_lossy = opened.format in LOSSY
        opened = load_upright(opened)
        pixels = decoding.to_array(opened)
        rgba = opened.convert("RGBA")
        thumbnail = np.asarray(ImageOps.fit(rgba, (THUMBNAIL, THUMBNAIL), Image.Resampling.BOX))
        rgb, alpha = thumbnail[..., :3], thumbnail[..., 3:]
        kind, has_hidden_colors = _describe_alpha(rgba) if has_alpha(opened) else ("none", False)
        return ImageFacts(
            name=name,
            mode=mode,
            size=opened.size,
            is_deep=values is not None,
            clipped=0.0 if values is None else float(np.mean((values < low) | (values > high))),
            is_animated=is_animated,
            alpha=kind,
            has_hard_alpha=not np.any(np.asarray(rgba)[..., 3] % 255),
            has_hidden_colors=has_hidden_colors,
            is_gray=bool((np.ptp(rgb.astype(int), axis=2) <= 1).all()),
            has_few_colors=max(opened.size) <= 2 * FEW_COLORS and rgba.getcolors(FEW_COLORS) is not None,
            digest=hashlib.blake2b(pixels.tobytes(), digest_size=16).digest(),
            thumbnail=np.dstack([rgb * (alpha / 255), alpha]).round().astype(np.uint8),
            grids={} if is_lossy else score_grids(rgba),
            colors=tuple(name_colors(pixels.transpose(1, 2, 0))) if has_colors else (),
        )


def _describe_alpha(image: Image.Image) -> tuple[str, bool]:
    pixels = np.asarray(image)
    low, high = pixels[..., 3].min(), pixels[..., 3].max()
    has_hidden_colors = bool(pixels[..., :3][pixels[..., 3] == 0].any())
    return "opaque" if low == 255 else "empty" if high == 0 else "used", has_hidden_colors


def log_sheets(data: dict, source: DataSource) -> None:
    """Log a note if the training images are few and all of them look like sheets of tiles that are not cut."""
    if data.get("tile", 0) is None and len((split := source.splits()["train"]).labels) <= MAX_SHEETS:
        facts = inspect_images({"train": split}, decoding_from_config(data | {"value_range": None}))
        if size := find_tile_size([fact.grids for fact in facts]):
            log.info("note       %s", FOUND.format(size))


def assign_splits(splits: dict[str, Split], facts: Sequence[ImageFacts], fraction: float) -> np.ndarray:
    """Return "train" or "val" for each image of the splits in order, as training will divide them."""
    if "val" in splits:
        return np.concatenate([np.full(len(split.labels), name) for name, split in splits.items()])
    hashes, train = np.array([fact.hash for fact in facts], np.uint64), splits["train"]
    return np.where(select_validation(hashes, train.labels, fraction, train.groups), "val", "train")


def summarize_captions(
    splits: dict[str, Split], facts: Sequence[ImageFacts], class_names: Sequence[str], has_colors: bool
) -> dict:
    """Return the facts of the captions that the network gets under "captions"; {} without any."""
    if not (has_colors or any(split.captions for split in splits.values())):
        return {}
    captions, rest = [], iter(facts)
    for split in splits.values():
        colors = [fact.colors for fact in islice(rest, len(split.labels))] if has_colors else None
        own = complete_captions(split.captions, split.labels, class_names, colors)
        captions += own or [()] * len(split.labels)
    return {"captions": describe_captions(captions)}


# ------------------------------------------------------------------------------------------ duplicates


def find_duplicates(digests: Sequence[bytes]) -> list[list[int]]:
    """Return groups of two or more images with the same pixels; an empty digest is that of no image."""
    groups = {}
    for k, digest in enumerate(digests):
        if digest:
            groups.setdefault(digest, []).append(k)
    return [group for group in groups.values() if len(group) > 1]


def find_near_duplicates(thumbnails: np.ndarray, distance: float) -> list[list[int]]:
    """Return groups of images whose thumbnails differ by at most `distance`, directly or in steps.

    Exact: thumbnails that are near in all axes are near in the principal ones, where a k-d
    tree finds candidates.

    Args:
        thumbnails: (N, D).
        distance: root mean square difference of the values.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    n, radius = len(thumbnails), distance * np.sqrt(thumbnails.shape[1])
    centered = thumbnails.astype(np.float32) - thumbnails.mean(axis=0, dtype=np.float32)
    axes = np.linalg.eigh(centered.T @ centered)[1][:, -AXES:]
    pairs = cKDTree(centered @ axes).query_pairs(radius * 1.001, output_type="ndarray")
    blocks = np.array_split(pairs, len(pairs) // 10_000 + 1)
    is_near = [((centered[a] - centered[b]) ** 2).sum(axis=1) <= radius**2 for a, b in (block.T for block in blocks)]
    first, second = pairs[np.concatenate(is_near)].T
    links = coo_array((np.ones(len(first), dtype=bool), (first, second)), shape=(n, n))
    _, group_of = connected_components(links, directed=False)
    order = np.argsort(group_of, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(group_of[order])) + 1)
    return sorted(group.tolist() for group in groups if len(group) > 1)


def find_period(digests: Sequence[bytes]) -> int | None:
    """Return the smallest n such that every image k equals image k + n, or None."""
    n = next((k for k in range(1, len(digests) // 2 + 1) if digests[k] == digests[0]), None)
    return n if n and digests[0] and digests[n:] == digests[:-n] else None
