"""Sheets of tiles are recognized with their size; drawings, photos, icons and enlarged pixel art are not."""

import numpy as np
from PIL import Image, ImageDraw

from diffusion_lit.inspection.tile_sheets import find_tile_size, score_grids


def found(images: list[Image.Image]) -> int | None:
    return find_tile_size([score_grids(image.convert("RGBA")) for image in images])


def draw_icon(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return an icon uint8 (S, S, 4): a disc of a few colors, with details, inside of a transparent margin."""
    icon = Image.new("RGBA", (size, size))
    draw = ImageDraw.Draw(icon)
    for inset in (1, 2, size // 4):
        color = (*rng.integers(0, 256, 3).tolist(), 255)
        draw.ellipse((inset, inset, size - 1 - inset, size - 1 - inset), fill=color, outline="black")
    details = rng.integers(0, 2, (size, size, 1)) * np.array([40, 40, 40, 0])
    return np.where(np.asarray(icon)[..., 3:] > 0, np.asarray(icon) // 2 + details, 0).astype(np.uint8)


def draw_texture(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return a full tile uint8 (S, S, 4) of two similar colors."""
    color = rng.integers(0, 240, 3)
    speckle = rng.integers(0, 2, (size, size, 1)) * 12
    return np.dstack([color + speckle, np.full((size, size), 255)]).astype(np.uint8)


def make_sheet(tiles: list[np.ndarray], columns: int) -> Image.Image:
    size, rows = len(tiles[0]), len(tiles) // columns
    grid = np.array(tiles[: rows * columns]).reshape(rows, columns, size, size, 4)
    return Image.fromarray(grid.swapaxes(1, 2).reshape(rows * size, columns * size, 4))


def draw_shapes(rng: np.random.Generator, size: int) -> Image.Image:
    image = Image.new("RGB", (size, size), "white")
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(2, 20))):
        (x, y), (width, height) = rng.integers(0, size, 2).tolist(), rng.integers(10, size // 3, 2).tolist()
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape((x, y, x + width, y + height), fill=tuple(rng.integers(0, 256, 3).tolist()))
    return image


def test_sheets_are_found_with_the_size_of_their_tiles():
    rng = np.random.default_rng(0)
    for size in (16, 24, 32, 48):
        icons = [draw_icon(rng, size) if k % 5 else np.zeros((size, size, 4), np.uint8) for k in range(144)]
        assert found([make_sheet(icons, 12)] * 2) == size, f"icons of {size}"
    for size in (16, 24, 32, 48):
        assert found([make_sheet([draw_texture(rng, size) for _ in range(144)], 12)]) == size, f"textures of {size}"
    palette = np.vstack([[0, 0, 0, 0], np.insert(rng.integers(0, 256, (11, 3)), 3, 255, axis=1)]).astype(np.uint8)
    for first in (4, 5, 6):  # noise, and an empty end, which a shifted grid cuts less often
        tiles = [palette[rng.integers(0, 12, (16, 16)) * (k // 8 < first or k % 8 < 3)] for k in range(72)]
        assert found([make_sheet(tiles, 8)] * 3) == 16, first


def test_other_images_are_not_taken_for_sheets():
    rng = np.random.default_rng(0)
    assert found([]) is None
    assert found([Image.fromarray(draw_icon(rng, 32)) for _ in range(20)]) is None  # icons
    assert found([Image.fromarray(draw_icon(rng, 64)) for _ in range(20)]) is None
    for zoom in (3, 4, 8):  # enlarged icons
        enlarged = [Image.fromarray(draw_icon(rng, 32)).resize((32 * zoom,) * 2, 0) for _ in range(20)]
        assert found(enlarged) is None, zoom
    noise = np.cumsum(rng.normal(0, 3, (3, 128, 128, 3)), axis=1) + 128
    assert found([Image.fromarray(image.clip(0, 255).astype(np.uint8)) for image in noise]) is None  # photos
    assert found([Image.new("L", (256, 256), 255)] * 3) is None  # blank pages
    assert found([Image.fromarray((rng.random((256, 256)) > 0.97).astype(np.uint8) * 255) for _ in range(3)]) is None
    wrong = [k for k in range(30) if found([draw_shapes(rng, 256) for _ in range(k % 4 + 1)])]
    assert wrong == []
    sheet = make_sheet([draw_icon(rng, 16) for _ in range(144)], 12)
    assert found([sheet, draw_shapes(rng, 256)]) is None  # a sheet among other images
