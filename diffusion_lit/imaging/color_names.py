"""The main colors of an image in words."""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from diffusion_lit.imaging.palettes import rgb_to_oklab

COLOR_NAMES = (
    "red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "brown", "black", "gray", "white",
)  # fmt: skip
MAX_SIDE = 48  # px. Of larger images every n-th row and column is read
GRAY = 0.04  # chroma in OKLab. Colors below it are black, gray or white
BLACK, WHITE = 0.36, 0.75  # lightness in OKLab. Grays below and above are black and white
DARK = 0.2  # lightness. Every color below it is black
# degrees in OKLab where a hue begins; the red of sRGB is at 29, its green at 142, its blue at 264
HUES = {0: "red", 39: "orange", 80: "yellow", 114: "green", 172: "cyan", 203: "blue", 287: "purple", 334: "pink"}
BINS = 90  # of the histogram of hues
# A hue is where most chroma lies within PEAK bins on both sides; all colors within WIDTH bins are its shades.
PEAK, WIDTH = 2, 5
WINDOWS = (np.arange(BINS)[:, None] + np.arange(-PEAK, PEAK + 1)) % BINS
SALIENCE = {"gray": 0.6, "white": 0.7}  # weight of a pixel; those of other colors weigh 1
OUTLINE = 0.4  # share of black pixels that are taken for outlines and shadows; black counts beyond it
MIN_SHARE = 0.2  # of the weighted pixels. A color with less has no word
BORDER_SHARE = 0.75  # of the border. A gray that fills it is background


def name_color(lab: np.ndarray) -> str:
    """Return the word of COLOR_NAMES for a color in OKLab (3,)."""
    lightness, chroma = float(lab[0]), float(np.hypot(lab[1], lab[2]))
    hue = float(np.degrees(np.arctan2(lab[2], lab[1])) % 360)
    if chroma < GRAY or lightness < DARK:
        if lightness < BLACK:
            return "black"
        return "white" if lightness > WHITE else "gray"
    name = [name for start, name in HUES.items() if hue >= start][-1]
    if name == "pink":
        if lightness > 0.53:
            return "pink"
        return "purple" if lightness < 0.48 else "red"
    if name == "red":  # light red is pink, dark and dull red is brown
        is_dull = chroma < 0.125 and lightness > 0.55
        if is_dull or lightness > (0.7 if hue > 20 else 0.53):
            return "pink"
        return "brown" if chroma < 0.11 and lightness < 0.48 else "red"
    if name == "orange":
        return "orange" if lightness > 0.57 and chroma > 0.125 else "brown"
    if name == "yellow":
        least = 0.6 if chroma > 0.12 else 0.66
        if lightness < least or chroma < 0.08:
            return "brown" if hue < 102 else "green"
    return name


def name_colors(image: np.ndarray) -> list[str]:
    """Return at most two words for the main colors of an image, the larger first; none if it is transparent.

    Pixels are grouped by hue in OKLab, so that the shades of a hue are one color, which has
    the name of its mean. Saturated pixels weigh more in that.

    Args:
        image: uint8 (H, W, C), gray, RGB or RGBA. Without alpha, a black, gray or white that
            fills most of the border is background.
    """
    step = -(-max(image.shape[:2]) // MAX_SIDE)
    image = image[::step, ::step]
    pixels = image[find_foreground(image)][:, :3]
    lab = rgb_to_oklab(np.broadcast_to(pixels, (len(pixels), 3))).round(6)  # the same on all processors
    areas: Counter[str] = Counter()
    for group in _group_hues(lab):
        weights = np.hypot(*group[:, 1:].T) + GRAY / 10
        name = name_color(np.average(group, axis=0, weights=weights))
        areas[name] += len(group) * SALIENCE.get(name, 1.0)
    areas["black"] -= OUTLINE * len(pixels)
    areas = +areas  # without black where it is outlines alone
    return [name for name, area in areas.most_common(2) if area >= MIN_SHARE * sum(areas.values())]


def find_foreground(image: np.ndarray) -> np.ndarray:
    """Return which pixels are not transparent, or are not a gray that fills most of the border, (H, W)."""
    if image.shape[2] == 4:
        return image[..., 3] > 127
    border = np.concatenate([image[0], image[-1], image[1:-1, 0], image[1:-1, -1]])
    colors, counts = np.unique(border, axis=0, return_counts=True)
    color = colors[counts.argmax()]
    is_other = (image != color).any(axis=2)
    is_frequent = counts.max() >= BORDER_SHARE * len(border)
    if is_frequent and np.ptp(color) == 0 and is_other.any():
        return is_other
    return np.ones_like(is_other)


def _group_hues(lab: np.ndarray) -> Iterator[np.ndarray]:
    """Yield colors (N, 3) in groups: black, other grays, and the hues, those that have the most chroma first."""
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    hue = np.degrees(np.arctan2(lab[:, 2], lab[:, 1]))
    is_left = (chroma >= GRAY) & (lab[:, 0] >= DARK)
    grays = lab[~is_left]
    is_black = (grays[:, 0] < BLACK) | (np.hypot(*grays[:, 1:].T) >= GRAY)
    for group in (grays[is_black], grays[~is_black]):
        if len(group):
            yield group
    bins = (hue * BINS // 360).astype(int) % BINS
    while is_left.any():
        weights = np.bincount(bins[is_left], chroma[is_left], BINS)
        offset = (bins - weights[WINDOWS].sum(axis=1).argmax()) % BINS
        is_near = is_left & (np.minimum(offset, BINS - offset) <= WIDTH)
        yield lab[is_near]
        is_left &= ~is_near
