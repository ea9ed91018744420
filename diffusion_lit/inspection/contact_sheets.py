"""Pictures of pictures: one row for each class, or for each group of duplicates, as the network would get them."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from diffusion_lit.data.decoding import Decoding
from diffusion_lit.data.sources.folder import Split
from diffusion_lit.imaging.sizes import height_width
from diffusion_lit.inspection.inspect import Facts

ROWS = 24
WIDTH = 1000  # px, about


def contact_sheet(
    splits: dict[str, Split], good: Sequence[int], labels: np.ndarray, decoding: Decoding, class_names: Sequence[str]
) -> Image.Image | None:
    """Rows of pictures, of each class some from its beginning to its end; None if there is no picture to show."""
    columns = _columns(decoding)
    good = np.array(good, dtype=int)
    if class_names:
        rows = {name: _spread(good[labels[good] == k], columns) for k, name in enumerate(class_names)}
        rows = dict(list(rows.items())[:ROWS])
    else:
        shown = _spread(good, 8 * columns)
        rows = {k: shown[k * columns : (k + 1) * columns] for k in range(8)}
    return _sheet(splits, rows, decoding)


def duplicate_sheet(
    splits: dict[str, Split], facts: Sequence[Facts], found: dict, decoding: Decoding
) -> Image.Image | None:
    """Groups of equal and of near pictures, one a row; None if there are none."""
    number = {fact.name: k for k, fact in enumerate(facts)}
    rows = {}
    for kind in ("equal", "near"):
        for k, group in enumerate(found[kind][: ROWS // 2]):
            rows[f"{kind} {k + 1}"] = [number[name] for name in group[: _columns(decoding)]]
    return _sheet(splits, rows, decoding)


def _columns(decoding: Decoding) -> int:
    return min(max(WIDTH // max(*height_width(decoding.image_size), 40), 4), 16)


def _spread(numbers: np.ndarray, n: int) -> np.ndarray:
    """N of them, evenly from the first to the last."""
    return numbers[np.unique(np.linspace(0, len(numbers) - 1, min(n, len(numbers))).round().astype(int))]


def _sheet(splits: dict[str, Split], rows: dict[str | int, Sequence[int]], decoding: Decoding) -> Image.Image | None:
    """Numbers of pictures by name of their row; a row that is only numbered has its name not written."""
    import torch

    from diffusion_lit.imaging.grids import grid, on_checkerboard

    rows = {name: row for name, row in rows.items() if len(row)}
    if not rows:
        return None
    columns, size = max(len(row) for row in rows.values()), height_width(decoding.image_size)
    images = np.full((len(rows), columns, decoding.channels, *size), 255, np.uint8)
    for y, row in enumerate(rows.values()):
        for x, k in enumerate(row):
            images[y, x] = decoding(_picture(splits, k))
    names = [name for name in rows if isinstance(name, str)]
    return on_checkerboard(grid(torch.from_numpy(images).flatten(0, 1), columns, row_names=names))


def _picture(splits: dict[str, Split], k: int):
    for split in splits.values():
        if k < len(split.labels):
            return split.pictures[k]
        k -= len(split.labels)
    raise IndexError(k)
