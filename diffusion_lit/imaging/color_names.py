"""The main colors of an image in words."""

from collections import Counter

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
SHADES = (np.arange(BINS)[:, None] + np.arange(-WIDTH, WIDTH + 1)) % BINS
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
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    weights, groups = chroma + GRAY / 10, _group_hues(lab, chroma)
    total = np.bincount(groups, weights)
    sums = np.stack([np.bincount(groups, weights * values) for values in lab.T], axis=1)
    areas: Counter[str] = Counter()
    for k, size in enumerate(np.bincount(groups).tolist()):
        if size:
            name = name_color(sums[k] / total[k])
            areas[name] += size * SALIENCE.get(name, 1.0)
    areas["black"] -= OUTLINE * len(pixels)
    areas = +areas  # without black where it is outlines alone
    return [name for name, area in areas.most_common(2) if area >= MIN_SHARE * sum(areas.values())]


def find_foreground(image: np.ndarray) -> np.ndarray:
    """Return which pixels are not transparent, or are not a gray that fills most of the border, (H, W)."""
    if image.shape[2] == 4:
        return image[..., 3] > 127
    codes = image @ 256 ** np.arange(image.shape[2])[::-1]  # a number for each color
    border = np.concatenate([codes[0], codes[-1], codes[1:-1, 0], codes[1:-1, -1]])
    colors, counts = np.unique(border, return_counts=True)
    is_other = codes != colors[counts.argmax()]
    is_frequent = counts.max() >= BORDER_SHARE * len(border)
    if is_frequent and np.ptp(image[~is_other][0]) == 0 and is_other.any():
        return is_other
    return np.ones_like(is_other)


def _group_hues(lab: np.ndarray, chroma: np.ndarray) -> np.ndarray:
    """Return a group for each color (N, 3): 0 black, 1 other grays, then the hues, those with most chroma first."""
    is_hue = (chroma >= GRAY) & (lab[:, 0] >= DARK)
    groups = np.where((lab[:, 0] < BLACK) | (chroma >= GRAY), 0, 1)
    hue = np.degrees(np.arctan2(lab[is_hue, 2], lab[is_hue, 1]))
    bins = (hue * BINS // 360).astype(int) % BINS
    weights, group_of_bin = np.bincount(bins, chroma[is_hue], BINS), np.zeros(BINS, int)
    count = 2
    while weights.any():
        shades = SHADES[weights[WINDOWS].sum(axis=1).argmax()]
        group_of_bin[shades[weights[shades] > 0]] = count
        weights[shades] = 0
        count += 1
    groups[is_hue] = group_of_bin[bins]
    return groups
