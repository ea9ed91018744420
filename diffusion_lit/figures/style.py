"""How figures look: one font, colours that colour-blind people tell apart, tiles that are whole pixels."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from diffusion_lit.imaging.grids import on_checkerboard, to_pil
from diffusion_lit.system.files import write_atomically

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#999999"  # of Okabe & Ito (2008)
DPI = 100
TILE = 72  # px that a tile has at least, if a whole factor makes it
FONT = 11  # px
GAP, GROUP_GAP, MARGIN = 3, 20, 10  # px


def save(figure, path: Path) -> Path:
    """Write a PNG; a reader sees the old one or the new, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(path) as beside:
        figure.savefig(beside, format="png", dpi=figure.dpi)
    return path


def render_figure(figure) -> Image.Image:
    """RGB, as `save` would write it."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=figure.dpi)
    return Image.open(buffer).convert("RGB")


def plots(rows: int, columns: int, title: str):
    """A matplotlib Figure and its axes (rows, columns); no window and no global state of pyplot."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * columns, 3.7 * rows), dpi=DPI, layout="constrained")
    figure.suptitle(title, fontsize="large")
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flatten():
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def logarithmic(ax) -> None:
    """A logarithmic vertical axis with plain numbers."""
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):
        def __call__(self, value, place=None) -> str:
            return f"{value:g}" if super().__call__(value, place) else ""  # which ones are told is as ever

    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(Plain())
    ax.yaxis.set_minor_formatter(Plain())


def tiles(
    images: Tensor,
    row_names: Sequence[str] = (),
    column_names: Sequence[str] = (),
    title: str = "",
    groups: Sequence[tuple[str, int]] = (),
):
    """Pictures as a table, pixel by pixel, enlarged by a whole factor: a matplotlib Figure.

    Args:
        images: uint8 (R, K, C, H, W), a row each; transparent ones are laid on a checkerboard.
        row_names: left of the rows; column_names: under the columns. Both may have several lines.
        title: above.
        groups: heads over so many columns each, set apart from the next.
    """
    import numpy as np
    from matplotlib.figure import Figure

    rows, columns, _, height, width = images.shape
    zoom = max(1, -(-TILE // max(height, width)))
    cell_h, cell_w = height * zoom + GAP, width * zoom + GAP
    x, right = [], -GROUP_GAP
    for head, count in groups or [("", columns)]:
        start, right = right + GROUP_GAP, right + GROUP_GAP + max(count * cell_w, _width(head))
        x += [start + k * cell_w for k in range(count)]
    left = MARGIN + max([_width(name) + 8 for name in row_names], default=0)
    heads, feet = _height([head for head, _ in groups]), _height(column_names)
    top = MARGIN + (_height([title]) + 4 if title else 0) + heads
    total_w = left + max(right, _width(title, "bold") - left + MARGIN) + MARGIN - GAP
    total_h = top + rows * cell_h + feet + MARGIN
    figure = Figure(figsize=(total_w / DPI, total_h / DPI), dpi=DPI)

    def write(text: str, px: float, py: float, **place) -> None:
        figure.text(px / total_w, 1 - py / total_h, text, fontsize=FONT * 72 / DPI, linespacing=1.2, **place)

    canvas = np.full((total_h, total_w, 3), 255, np.uint8)
    for row in range(rows):
        for column in range(columns):
            tile = images[row, column].repeat_interleave(zoom, -2).repeat_interleave(zoom, -1)
            across, down = left + x[column], top + row * cell_h
            canvas[down : down + height * zoom, across : across + width * zoom] = on_checkerboard(to_pil(tile)).convert(
                "RGB"
            )
    figure.figimage(canvas)
    for row, name in enumerate(row_names):
        write(name, left - 8, top + row * cell_h + cell_h / 2, ha="right", va="center")
    for column, name in enumerate(column_names):
        write(name, left + x[column] + width * zoom / 2, top + rows * cell_h + 2, ha="center", va="top")
    ends = torch.tensor([count for _, count in groups], dtype=torch.long).cumsum(0).tolist()
    for (head, count), end in zip(groups, ends, strict=True):
        write(head, left + x[end - count], top - 6, va="bottom")
    if title:
        write(title, MARGIN, MARGIN, va="top", weight="bold")
    return figure


def _height(texts: Sequence[str]) -> int:
    """Px of the tallest text, with some air under it; 0 for none."""
    return max([round(FONT * 1.45 * (text.count("\n") + 1)) + 6 for text in texts], default=0)


def _width(text: str, weight: str = "normal") -> int:
    """Px of the longest line."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    paths = [
        TextPath((0, 0), line, size=FONT, prop=FontProperties(weight=weight))
        for line in text.splitlines()
        if line.strip()
    ]
    return round(max([path.get_extents().width for path in paths], default=0) * 1.1)
