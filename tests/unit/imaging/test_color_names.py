"""The words for colors: those that people use for the colors of matplotlib, and the main ones of images."""

import numpy as np
from matplotlib.colors import CSS4_COLORS, XKCD_COLORS, to_rgb

from diffusion_lit.imaging import color_names
from diffusion_lit.imaging.color_names import COLOR_NAMES, name_color, name_colors
from diffusion_lit.imaging.palettes import rgb_to_oklab
from tests.cases import each

CLEAR = {
    "red": "red", "orange": "orange", "yellow": "yellow", "green": "green", "lime": "green", "cyan": "cyan",
    "blue": "blue", "navy": "blue", "royalblue": "blue", "purple": "purple", "pink": "pink", "hotpink": "pink",
    "saddlebrown": "brown", "sienna": "brown", "crimson": "red", "gold": "yellow", "forestgreen": "green",
    "darkorange": "orange", "turquoise": "cyan", "black": "black", "gray": "gray", "white": "white",
}  # fmt: skip


def to_uint8(color: str) -> np.ndarray:
    return (255 * np.array(to_rgb(color))).round().astype(np.uint8)


def fill(*colors, size: int = 16) -> np.ndarray:
    """An image of vertical stripes as wide as each other, RGB."""
    rows = np.array([to_uint8(color) if isinstance(color, str) else color for color in colors], np.uint8)
    return np.broadcast_to(np.repeat(rows, size // len(rows), axis=0), (size, size // len(rows) * len(rows), 3)).copy()


@each("color", CLEAR)
def test_an_image_of_one_color_has_its_name(color):
    assert name_colors(fill(CSS4_COLORS[color])) == [CLEAR[color]]


def test_most_words_are_those_of_people():
    """The survey of XKCD, whose names end in one of our words, such as "dark olive green"."""
    words = {"grey": "gray", "violet": "purple"}
    named = {name: words.get(last := name.split()[-1].removeprefix("xkcd:"), last) for name in XKCD_COLORS}
    named = {name: word for name, word in named.items() if word in COLOR_NAMES}
    hits = [name_color(rgb_to_oklab(to_uint8(name)[None])[0]) == word for name, word in named.items()]
    assert len(hits) > 500
    assert np.mean(hits) > 0.8


def test_shades_of_a_hue_are_one_color():
    for color in ("red", "green", "blue", "yellow"):
        shades = [(to_uint8(color) * share).astype(np.uint8) for share in (1, 0.9, 0.8, 0.7)]
        assert name_colors(fill(*shades)) == [color]
    assert name_colors(fill(*[np.full(3, level, np.uint8) for level in (110, 120, 130, 140)])) == ["gray"]


def test_two_halves_are_two_colors_and_a_spot_is_none():
    assert sorted(name_colors(fill("red", "blue"))) == ["blue", "red"]
    assert name_colors(fill("green", "green", "yellow", "green")) == ["green", "yellow"]
    image = fill("red")
    image[:3, :3] = to_uint8("blue")
    assert name_colors(image) == ["red"]
    assert len(name_colors(fill("red", "green", "blue", "yellow"))) == 2


def test_transparent_pixels_have_no_color():
    rgba = np.dstack([fill("red", "blue"), np.full((16, 16), 255, np.uint8)])
    rgba[:, 8:, 3] = 0
    assert name_colors(rgba) == ["red"]
    rgba[..., 3] = 0
    assert name_colors(rgba) == []


def test_outlines_and_a_gray_background_are_no_colors():
    """Of a red shape with a black outline, on transparency and on white."""
    inner = np.zeros((16, 16), bool)
    inner[4:12, 4:12] = True
    outline = np.zeros((16, 16), bool)
    outline[3:13, 3:13] = True
    image = np.where(inner[..., None], to_uint8("red"), np.where(outline[..., None], 0, 255)).astype(np.uint8)
    assert name_colors(image) == ["red"]
    assert name_colors(np.dstack([image, np.where(outline, 255, 0).astype(np.uint8)])) == ["red"]
    assert name_colors(fill("white")) == ["white"]


def test_gray_images_have_gray_words():
    for level, name in ((0, "black"), (128, "gray"), (255, "white")):
        assert name_colors(np.full((8, 8, 1), level, np.uint8)) == [name]
    assert name_colors(np.tile(np.arange(0, 256, 8, np.uint8), (32, 1))[..., None]) == ["gray"]


def test_names_do_not_depend_on_size_orientation_or_repeats():
    rng = np.random.default_rng(0)
    for _ in range(20):
        image = rng.choice(
            [to_uint8(color) for color in ("red", "green", "navy", "gray", "gold")], (12, 12), p=rng.dirichlet([1] * 5)
        )
        names = name_colors(image)
        assert names == name_colors(image[::-1, ::-1]) == name_colors(image.transpose(1, 0, 2))
        assert names == name_colors(image.repeat(2, 0).repeat(2, 1))
        assert 1 <= len(names) <= 2
        assert set(names) <= set(COLOR_NAMES)


def group_slowly(lab: np.ndarray, chroma: np.ndarray) -> np.ndarray:
    """The groups of `name_colors`, by a histogram of the pixels that are left after each group."""
    is_left = (chroma >= color_names.GRAY) & (lab[:, 0] >= color_names.DARK)
    is_black = (lab[:, 0] < color_names.BLACK) | (chroma >= color_names.GRAY)
    groups, count = np.where(is_black, 0, 1), 2
    hue = np.degrees(np.arctan2(lab[:, 2], lab[:, 1]))
    bins = (hue * color_names.BINS // 360).astype(int) % color_names.BINS
    while is_left.any():
        weights = np.bincount(bins[is_left], chroma[is_left], color_names.BINS)
        offset = (bins - weights[color_names.WINDOWS].sum(axis=1).argmax()) % color_names.BINS
        is_near = is_left & (np.minimum(offset, color_names.BINS - offset) <= color_names.WIDTH)
        groups[is_near] = count
        is_left &= ~is_near
        count += 1
    return groups


def make_noisy_images(count: int):
    """Yield images of a few colors, some with noise, of 1, 3 or 4 channels."""
    rng = np.random.default_rng(0)
    for k in range(count):
        channels = (1, 3, 4)[k % 3]
        palette = rng.integers(0, 256, (rng.integers(1, 12), channels))
        image = palette[rng.integers(0, len(palette), rng.integers(1, 50, 2))]
        yield (image + rng.normal(0, 20, image.shape) * (k % 2)).clip(0, 255).astype(np.uint8)


def test_the_histogram_of_bins_groups_as_one_of_pixels_does(monkeypatch):
    images = list(make_noisy_images(600))
    names = list(map(name_colors, images))
    assert len(set(map(tuple, names))) > 50
    monkeypatch.setattr(color_names, "_group_hues", group_slowly)
    assert list(map(name_colors, images)) == names


def test_the_background_is_the_most_frequent_gray_of_the_border():
    for image in make_noisy_images(300):
        if image.shape[2] < 4:
            border = [*map(tuple, [*image[0], *image[-1], *image[1:-1, 0], *image[1:-1, -1]])]
            color = max(sorted(set(border)), key=border.count)
            is_other = (image != color).any(axis=2)
            is_background = border.count(color) >= 0.75 * len(border) and len(set(color)) == 1 and is_other.any()
            np.testing.assert_array_equal(color_names.find_foreground(image), is_other | (not is_background))
