"""What pictures are before anything is trained on them: each by itself, and which of them are the same."""

import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from diffusion_lit.data.decoding import (
    Decoding,
    Encoded,
    has_alpha,
    in_the_faster_way,
    is_deep,
    named,
    opened,
    to_8_bits,
    upright,
)
from diffusion_lit.data.sources.folder import Split, hold_out
from diffusion_lit.system.errors import UserError

THUMB = 8  # px, what pictures are compared by
FEW_COLOURS = 64
AXES = 12  # of thumbnails, in which candidates for near duplicates are searched


@dataclass(frozen=True)
class Facts:
    """One picture: how it is stored, and what is compared with others."""

    name: str
    fault: str | None = None  # why it cannot be read; then nothing else is known
    mode: str = ""  # as Pillow calls it
    size: tuple[int, int] = (0, 0)  # width, height, upright
    deep: bool = False  # 16 bits a channel or more
    animated: bool = False
    alpha: str = "none"  # none, opaque (255 everywhere), used, empty (0 everywhere)
    hidden: bool = False  # are there colours under alpha 0
    grey: bool = False
    few_colours: bool = False
    digest: bytes = b""  # of the pixels as the network gets them
    thumb: np.ndarray | None = None  # uint8 (8, 8, 4), colours times alpha, and alpha


def inspect_all(splits: dict[str, Split], decoding: Decoding) -> Iterator[Facts]:
    """Facts of the pictures of every split, in order."""

    def one(task: tuple[str, int]) -> Facts:
        part, k = task
        try:
            picture = splits[part].pictures[k]
        except UserError as error:  # a row of a table without a picture
            return Facts(f"row {k} of {part}", fault=str(error))
        name = f"row {k} of {part}" if isinstance(picture, np.ndarray) else str(picture)
        name = os.fsencode(name).decode(errors="backslashreplace")  # some names are no text, and are shown all the same
        try:
            return inspect(picture, name, decoding)
        except UserError as error:
            return Facts(name, fault=str(error).removeprefix(f"{picture}: "))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tasks = [(part, k) for part, split in splits.items() for k in range(len(split.labels))]
        yield from in_the_faster_way(one, tasks)


def inspect(picture: Path | Encoded | np.ndarray, name: str, decoding: Decoding) -> Facts:
    """Facts of one picture. Raises UserError if it is broken."""
    with named(picture), opened(picture) as image:
        mode, deep = image.mode, is_deep(image) or _has_deep_channels(image)
        animated = getattr(image, "is_animated", False)
        image = upright(image)
        pixels = decoding.array(image)
        seen = to_8_bits(image).convert("RGBA")
        thumb = np.asarray(ImageOps.fit(seen, (THUMB, THUMB), Image.Resampling.BOX))
        alpha, hidden = _alpha(seen) if has_alpha(image) else ("none", False)
        return Facts(
            name=name,
            mode=mode,
            size=image.size,
            deep=deep,
            animated=animated,
            alpha=alpha,
            hidden=hidden,
            grey=bool((np.ptp(thumb[..., :3].astype(int), axis=2) <= 1).all()),
            few_colours=max(image.size) <= 2 * FEW_COLOURS and seen.getcolors(FEW_COLOURS) is not None,
            digest=hashlib.blake2b(pixels.tobytes(), digest_size=16).digest(),
            thumb=np.dstack([thumb[..., :3] * (thumb[..., 3:] / 255), thumb[..., 3]]).round().astype(np.uint8),
        )


def _has_deep_channels(image: Image.Image) -> bool:
    """Colours of 16 bits, of which Pillow reads the upper 8."""
    how = image.tile[0].args if getattr(image, "tile", None) else ""
    return "16" in str(how[0] if isinstance(how, tuple) and how else how)


def _alpha(image: Image.Image) -> tuple[str, bool]:
    pixels = np.asarray(image)
    low, high = pixels[..., 3].min(), pixels[..., 3].max()
    hidden = bool(pixels[..., :3][pixels[..., 3] == 0].any())
    return "opaque" if low == 255 else "empty" if high == 0 else "used", hidden


def parts_of(splits: dict[str, Split], fraction: float) -> np.ndarray:
    """ "train" or "val" for each picture of the splits in order, as training will hold them out."""
    numbered, n = {}, 0
    for name, split in splits.items():
        numbered[name] = Split(np.arange(n, n + len(split.labels)), split.labels, split.groups)
        n += len(split.labels)
    parts = np.empty(n, dtype="<U5")
    for name, split in hold_out(numbered, fraction).items():
        parts[split.pictures] = name
    return parts


# ------------------------------------------------------------------------------------------ the same pictures


def equal_groups(digests: Sequence[bytes]) -> list[list[int]]:
    """Numbers of pictures that have the same pixels, two or more in a group; empty digests are of no picture."""
    groups = {}
    for k, digest in enumerate(digests):
        if digest:
            groups.setdefault(digest, []).append(k)
    return [group for group in groups.values() if len(group) > 1]


def near_groups(thumbs: np.ndarray, distance: float) -> list[list[int]]:
    """Numbers of pictures whose thumbnails (N, D) differ by at most `distance`, root mean square, directly or in steps.

    Exact: what lies near in all axes lies near in the main ones, where a k-d tree finds the candidates.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    n, radius = len(thumbs), distance * np.sqrt(thumbs.shape[1])
    centred = thumbs.astype(np.float32) - thumbs.mean(axis=0, dtype=np.float32)
    main = np.linalg.eigh(centred.T @ centred)[1][:, -AXES:]
    pairs = cKDTree(centred @ main).query_pairs(radius * 1.001, output_type="ndarray")
    blocks = np.array_split(pairs, len(pairs) // 10_000 + 1)
    near = [((centred[a] - centred[b]) ** 2).sum(axis=1) <= radius**2 for a, b in (block.T for block in blocks)]
    first, second = pairs[np.concatenate(near)].T
    links = coo_array((np.ones(len(first), dtype=bool), (first, second)), shape=(n, n))
    _, group_of = connected_components(links, directed=False)
    order = np.argsort(group_of, kind="stable")
    parted = np.split(order, np.flatnonzero(np.diff(group_of[order])) + 1)
    return sorted(group.tolist() for group in parted if len(group) > 1)


def repeats_every(digests: Sequence[bytes]) -> int | None:
    """n, if picture k is picture k + n for all of them."""
    n = next((k for k in range(1, len(digests) // 2 + 1) if digests[k] == digests[0]), None)
    return n if n and digests[0] and digests[n:] == digests[:-n] else None
