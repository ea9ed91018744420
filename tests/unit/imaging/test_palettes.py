"""Palettes: found in images, read from what people have, and snapped to in OKLab."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_lit.imaging.palettes import (
    find_palette,
    format_palette,
    read_palette,
    rgb_to_oklab,
    snap_colors,
    write_palette,
)
from diffusion_lit.system.errors import Exit, UserError

RNG = np.random.default_rng(0)
COLORS = RNG.integers(0, 256, (16, 3), dtype=np.uint8)


def drawn(colors: np.ndarray, *shape: int) -> np.ndarray:
    """Return images uint8 (*shape[:-2], 3, H, W) of random colors."""
    return np.moveaxis(colors[RNG.integers(0, len(colors), shape)], -1, -3)


def test_oklab_has_the_published_values():
    """Of Ottosson's article: L, a and b of pure colors, and no chroma of grays."""
    lab = rgb_to_oklab(np.array([[255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255], [119, 119, 119]], np.uint8))
    expected = [[1, 0, 0], [0.628, 0.225, 0.126], [0.866, -0.234, 0.179], [0.452, -0.032, -0.312]]
    np.testing.assert_allclose(lab[:4], expected, atol=1e-3)
    np.testing.assert_allclose(lab[4, 1:], 0, atol=1e-4)


def test_the_colors_of_images_are_found_unless_they_are_many(tmp_path):
    images = drawn(COLORS, 40, 8, 8)
    assert format_palette(find_palette(images)) == sorted(format_palette(COLORS))
    gray = RNG.integers(0, 4, (5, 1, 8, 8), dtype=np.uint8) * 80
    assert find_palette(gray).tolist() == [[v, v, v] for v in (0, 80, 160, 240)]
    alpha = RNG.choice(np.array([0, 255], np.uint8), (40, 1, 8, 8))
    hidden = np.where(alpha > 0, images, RNG.integers(0, 256, images.shape, dtype=np.uint8))
    assert format_palette(find_palette(np.concatenate([hidden, alpha], 1))) == sorted(format_palette(COLORS))
    assert find_palette(RNG.integers(0, 256, (2, 3, 20, 20), dtype=np.uint8)) is None
    write_palette(tmp_path, images)
    assert format_palette(read_palette("auto", tmp_path, 3)) == sorted(format_palette(COLORS))


def test_each_pixel_gets_the_nearest_color_and_keeps_its_alpha():
    images = RNG.integers(0, 256, (2, 3, 4, 9, 7), dtype=np.uint8)
    snapped = snap_colors(images, COLORS)
    assert snapped.shape == images.shape
    np.testing.assert_array_equal(snapped[..., 3, :, :], images[..., 3, :, :])
    pixels, found = (np.moveaxis(some[..., :3, :, :], -3, -1).reshape(-1, 3) for some in (images, snapped))
    distances = np.linalg.norm(rgb_to_oklab(pixels)[:, None] - rgb_to_oklab(COLORS), axis=2)
    np.testing.assert_array_equal(found, COLORS[distances.argmin(1)])
    np.testing.assert_array_equal(snap_colors(snapped, COLORS), snapped)
    gray = snap_colors(np.arange(256, dtype=np.uint8).reshape(1, 16, 16), np.array([[0] * 3, [255] * 3], np.uint8))
    assert set(np.unique(gray)) == {0, 255}
    assert gray.shape == (1, 16, 16)


def test_palettes_of_people_are_read(tmp_path):
    wanted = [[26, 28, 44], [244, 244, 244], [0, 0, 0]]
    files = {
        "lospec.hex": "1a1c2c\nf4f4f4\n000000\n",
        "css.txt": "# a palette\n#1A1C2C\r\n#f4f4f4ff\n\n#000000\n",
        "short.css": "#1a1c2c\n#f4f4f4\n#000\n",
        "paint.net.txt": ";paint.net Palette File\n;Colors: 3\nFF1A1C2C\nFFF4F4F4\nff000000\n00FFFFFF\n",
        "gimp.gpl": "GIMP Palette\nColumns: 2\n#\n 26  28  44\tNight\n244 244 244\tSnow\n0 0 0\tUntitled\n",
        "jasc.pal": "JASC-PAL\n0100\n3\n26 28 44\n244 244 244\n0 0 0\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert read_palette(str(tmp_path / name), tmp_path, 3).tolist() == wanted, name
    Image.fromarray(np.array([wanted], np.uint8)).save(tmp_path / "image.png")
    assert sorted(read_palette(str(tmp_path / "image.png"), tmp_path, 3).tolist()) == sorted(wanted)
    for listed in (["#1a1c2c", "f4f4f4", "#000"], ["1a1c2c", "F4F4F4", 0]):
        assert read_palette(listed, tmp_path, 3).tolist() == wanted


def test_what_is_no_palette_is_explained(tmp_path):
    (tmp_path / "prose.txt").write_text("no colors here\n", encoding="utf-8")
    Image.fromarray(RNG.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(tmp_path / "photo.png")
    cases: list[tuple[str | list[str], int, str]] = [
        ("auto", 3, "palette=auto: the training images have more than 256 colors, or are streamed"),
        ("gone.hex", 3, "palette=gone.hex: file not found"),
        (str(Path(tmp_path, "prose.txt")), 3, "prose.txt: no colors such as #1a1c2c"),
        (str(Path(tmp_path, "photo.png")), 3, "photo.png: more than 256 colors"),
        (["#1a1c2c", "red"], 3, r"palette=\[#1a1c2c,red\]: red is not a color such as #1a1c2c"),
        (["#1a1c2c"], 1, "has colors, and the images of this run are gray"),
    ]
    for palette, channels, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            read_palette(palette, tmp_path, channels)
        assert caught.value.exit_code == Exit.CONFIG
