"""Recognize sheets of tiles: sharp images with a grid of lines unlike the others, or of empty and repeated tiles."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

FOUND = "all images look like sheets of tiles: data.tile={} cuts them"
TILE_SIZES = (64, 48, 32, 24, 16)  # px; of several that fit the largest is found
MIN_SIDE, MAX_PIXELS = 65, 2**22  # px, of the longer side; of all
MIN_EQUAL = 0.2  # share of equal neighbors in sharp images; photos have fewer
CALM, ROUGH = 0.4, 1.5  # change of colors across the lines of a grid, relative to others
MOST = 0.6  # of the images
MIN_TILES = 64  # in which empty and repeated ones are counted
MIN_PLAIN, ADVANTAGE = 0.05, 1.08  # share of tiles that are empty or repeated, and relative to shifted grids


@dataclass(frozen=True)
class GridScore:
    """How a square grid fits a sheet.

    Args:
        changes: mean change of colors across vertical and horizontal lines, by the position
            of the line in its tile, (2, size).
        plain: number of tiles that are empty or repeated, and of tiles: of the grid, and of
            grids shifted down or right by quarters of a tile, (7, 2).
    """

    changes: np.ndarray
    plain: np.ndarray


def score_grids(image: Image.Image) -> dict[int, GridScore]:
    """Return how grids of each tile size fit an RGBA image; empty for photos, small images and enlarged ones."""
    width, height = image.size
    sizes = [size for size in TILE_SIZES if width % size == height % size == 0 and width * height >= 4 * size**2]
    if not sizes or max(width, height) < MIN_SIDE or width * height > MAX_PIXELS:
        return {}
    rgba = np.where(np.asarray(image)[..., 3:] > 0, np.asarray(image), np.uint8(0))
    colors = np.ascontiguousarray(rgba).view(np.uint32)[..., 0]
    is_equal = colors[:, 1:] == colors[:, :-1]
    is_enlarged = np.gcd.reduce(1 + np.flatnonzero(~is_equal.all(axis=0))) != 1  # every pixel is there several times
    if is_equal.mean() < MIN_EQUAL or is_enlarged:
        return {}
    across = np.abs(np.diff(rgba.astype(np.int16), axis=1)).mean(axis=(0, 2))  # line x is between x and x + 1
    down = np.abs(np.diff(rgba.astype(np.int16), axis=0)).mean(axis=(1, 2))
    return {size: GridScore(_average_phases((across, down), size), _count_shifted(colors, size)) for size in sizes}


def _average_phases(lines: Sequence[np.ndarray], size: int) -> np.ndarray:
    """Return the mean of lines 1, 2, ... by their number modulo `size`, (2, size)."""
    return np.array([[line[(phase - 1) % size :: size].mean() for phase in range(size)] for line in lines])


def _count_shifted(colors: np.ndarray, size: int) -> np.ndarray:
    steps = [size // 4, size // 2, 3 * size // 4]
    shifts = [(0, 0), *[(step, 0) for step in steps], *[(0, step) for step in steps]]
    return np.array([_count_plain(colors[top:, left:], size) for top, left in shifts])


def _count_plain(colors: np.ndarray, size: int) -> tuple[int, int]:
    """Return how many tiles of a grid are empty or repeated, and how many there are."""
    rows, columns = (side // size for side in colors.shape)
    cut = colors[: rows * size, : columns * size].reshape(rows, size, columns, size).swapaxes(1, 2)
    tiles = cut.reshape(rows * columns, size * size)
    is_empty = (tiles == tiles[:, :1]).all(axis=1)
    others = len({tile.tobytes() for tile in tiles[~is_empty]})
    return len(tiles) - others, len(tiles)


def find_tile_size(grids: Sequence[dict[int, GridScore]]) -> int | None:
    """Return the size of the tiles if all images are sheets of tiles of one size, else None.

    Args:
        grids: the scores of each image, see `score_grids`.
    """
    sizes = [size for size in TILE_SIZES if grids and all(size in scores for scores in grids)]
    for has_grid in (_has_seams, _has_plain_tiles):
        for size in sizes:
            if has_grid([scores[size] for scores in grids]):
                return size
    return None


def _has_plain_tiles(scores: Sequence[GridScore]) -> bool:
    """Return whether clearly more tiles of the grid are empty or repeated than of shifted grids."""
    plain, total = sum(score.plain for score in scores).T
    share = plain / np.maximum(total, 1)
    more = share[0] - share[1:].max()
    is_clear = share[0] >= MIN_PLAIN and more >= (ADVANTAGE - 1) * share[0] and more * total[0] >= 3
    return bool(is_clear and total[0] >= MIN_TILES and total[0] > plain[0] + 3)


def _has_seams(scores: Sequence[GridScore]) -> bool:
    """Return whether, in most images, colors change across the grid clearly less or more than elsewhere."""
    return bool(np.mean([_is_unlike_others(score.changes) for score in scores]) >= MOST)


def _is_unlike_others(changes: np.ndarray) -> bool:
    size = changes.shape[1]
    inner = changes[:, [phase for phase in range(1, size) if phase % 8 == 0 or phase % (size // 4) == 0]]
    is_calm = (changes[:, 0] < CALM * inner.min(axis=1)).all()
    is_rough = (changes[:, 0] > ROUGH * changes[:, 1:].max(axis=1)).all()
    return is_calm or is_rough
