"""Sheets of tiles, cut into images (`data.tile`). Empty tiles are left out."""

import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from diffusion_lit.config.value_types import format_value
from diffusion_lit.data.decoding import Encoded, has_alpha, load_upright, open_image
from diffusion_lit.data.sources.data_source import Split, file_state
from diffusion_lit.imaging.sizes import ImageSize, height_width
from diffusion_lit.system.errors import DataError

EMPTY = "empty tiles"
NO_TILE = "images smaller than a tile"


@dataclass(frozen=True)
class Tiling:
    """How sheets are cut; the fields are keys of `conf/data`.

    Args:
        tile: px, one number or (height, width).
        tile_margin: px around the tiles of a sheet.
        tile_spacing: px between two tiles.
    """

    tile: ImageSize
    tile_margin: int = 0
    tile_spacing: int = 0

    def box(self, row: int, column: int) -> tuple[int, int, int, int]:
        """Return left, top, right and bottom of a tile."""
        height, width = height_width(self.tile)
        left = self.tile_margin + column * (width + self.tile_spacing)
        top = self.tile_margin + row * (height + self.tile_spacing)
        return left, top, left + width, top + height

    def count(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the rows and columns of complete tiles in a sheet of (width, height)."""
        free = [side - 2 * self.tile_margin + self.tile_spacing for side in size[::-1]]
        steps = [side + self.tile_spacing for side in height_width(self.tile)]
        rows, columns = (max(0, side // step) for side, step in zip(free, steps, strict=True))
        return rows, columns


class Sheet(NamedTuple):
    """The tiles of a sheet by (row, column), and those that are empty. None: the file cannot be read."""

    tiles: list[tuple[int, int]] | None
    empty: list[tuple[int, int]]


def make_tiling(tile: ImageSize | None, tile_margin: int, tile_spacing: int) -> Tiling | None:
    """Return how to cut sheets; None without `tile`."""
    return None if tile is None else Tiling(tile if isinstance(tile, int) else tuple(tile), tile_margin, tile_spacing)


def cut_sheets(split: Split, tiling: Tiling | None) -> Split:
    """Return a split of paths as a split of the tiles in them, with the labels of their sheets.

    Raises:
        DataError: if there are no tiles.
    """
    if tiling is None:
        return split
    places, labels = [], []
    for k, path in enumerate(split.images):
        tiles = list_tiles(path, file_state(path), tiling).tiles
        own = [(-1, -1)] if tiles is None else tiles
        places += [(k, row, column) for row, column in own]
        labels += [split.labels[k]] * len(own)
    if not places:
        size = format_value(tiling.tile)
        fault = f"none of the {len(split.images):,} images has a tile that is not empty, such as {split.images[0]}"
        raise DataError(f"data.tile={size}: {fault}. Set the size of the tiles, or data.tile=null.")
    places = np.array(places, dtype=np.int64).reshape(-1, 3)
    captions = None if split.captions is None else [split.captions[k] for k in places[:, 0]]
    return Split(TileImages(split.images, places, tiling), np.array(labels, dtype=np.int64), captions=captions)


def list_left_out(splits: Iterable[Split]) -> dict[str, list[str]]:
    """Return the names of empty tiles and of images without a tile, by reason, of splits that are cut."""
    left_out = {EMPTY: [], NO_TILE: []}
    for images in (split.images for split in splits):
        for path, state in zip(images.sheets, images.states, strict=True):
            sheet = list_tiles(path, state, images.tiling)
            left_out[EMPTY] += [name_tile(path, *place) for place in sheet.empty]
            left_out[NO_TILE] += [str(path)] * (sheet.tiles == [] and not sheet.empty)
    return {reason: names for reason, names in left_out.items() if names}


@dataclass(frozen=True)
class TileImages:
    """Tiles as images, each with a name such as `sheet.png[3,5]`: row and column, from 0.

    Args:
        sheets: files.
        places: int64 (N, 3), sheet, row and column of each tile; row -1 is a broken sheet.
        tiling: how the sheets are cut.
    """

    sheets: list[Path]
    places: np.ndarray
    tiling: Tiling

    @cached_property
    def states(self) -> list[str]:
        """Return name, size and time of each sheet."""
        return [file_state(path) for path in self.sheets]

    @cached_property
    def fingerprint(self) -> str:
        """Return a digest of the states of the sheets and how they are cut."""
        digest = hashlib.blake2b(f"{self.tiling} {self.states}".encode(errors="surrogateescape"), digest_size=8)
        digest.update(self.places)
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, k: int) -> Encoded:
        number, row, column = self.places[k].tolist()
        path = self.sheets[number]
        if row < 0:
            return Encoded(str(path), path.read_bytes)
        crop = partial(encode_tile, path, self.states[number], self.tiling.box(row, column))
        return Encoded(name_tile(path, row, column), crop)


def name_tile(path: Path, row: int, column: int) -> str:
    """Return what messages call a tile."""
    return f"{path}[{row},{column}]"


@cache
def list_tiles(path: Path, state: str, tiling: Tiling) -> Sheet:
    """Return the tiles of a sheet. A tile is empty if it is fully transparent or has one color.

    `state` is that of the file, so that a changed sheet is read again.
    """
    try:
        sheet = load_sheet(path, state)
    except Exception:  # decoding reports the file and the reason
        return Sheet(None, [])
    rows, columns = tiling.count(sheet.size)
    tiles, empty = [], []
    for place in ((row, column) for row in range(rows) for column in range(columns)):
        extrema = sheet.crop(tiling.box(*place)).getextrema()
        bands = [extrema] if len(sheet.getbands()) == 1 else extrema
        has_one_color = all(low == high for low, high in bands)
        is_transparent = sheet.mode in ("RGBA", "LA") and bands[-1][1] == 0
        (empty if has_one_color or is_transparent else tiles).append(place)
    return Sheet(tiles, empty)


@lru_cache(maxsize=8)
def load_sheet(path: Path, state: str) -> Image.Image:
    """Return a loaded, upright sheet, with colors instead of a palette."""
    with open_image(path) as opened:
        sheet = load_upright(opened)
        if sheet.mode in ("P", "PA", "1") or has_alpha(sheet):
            sheet = sheet.convert("RGBA" if has_alpha(sheet) else "RGB")
        return sheet


def encode_tile(path: Path, state: str, box: tuple[int, int, int, int]) -> bytes:
    """Return a tile as an image file, uncompressed, so that its bytes depend on its pixels alone."""
    file = io.BytesIO()
    load_sheet(path, state).crop(box).save(file, "TIFF")
    return file.getvalue()
