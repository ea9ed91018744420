"""The look of all figures: one font, a palette safe for color-blind readers, images drawn pixel by pixel."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from warnings import catch_warnings, simplefilter

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffusion_lit.imaging.fonts import find_font, to_drawable
from diffusion_lit.imaging.grids import add_checkerboard, to_pil
from diffusion_lit.system.files import write_atomically

BLUE, ORANGE, GREEN, GRAY = "#0072B2", "#D55E00", "#009E73", "#999999"  # Okabe & Ito (2008)
DPI = 100
MIN_TILE = 72  # px, small images are enlarged by a whole factor to at least this
FONT = 11  # px
ALPHA_BAR = r"$\bar\alpha_t$"  # the only formula
GAP, GROUP_GAP, MARGIN = 3, 20, 10  # px


def label_single_points(ax) -> None:
    """Write value and step beside each curve that is one point, for a chart of one dot says nothing."""
    for line in ax.lines:
        if len(line.get_xdata()) == 1:
            (x,), (y,) = line.get_xdata(), line.get_ydata()
            ax.annotate(f"{y:.4g} at step {x:,}", (x, y), (8, 4), textcoords="offset points", color=line.get_color())


def save_figure(figure, path: Path) -> Path:
    """Write a figure as PNG, atomically, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = encode_figure(figure)
    with write_atomically(path) as temporary:
        temporary.write_bytes(content)
    return path


def encode_figure(figure) -> bytes:
    """Return a figure as PNG, with every text as it is typed: `$` begins no formula."""
    from matplotlib.text import Text
    from matplotlib.ticker import LogFormatter

    axes = [axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)]
    logarithmic = [axis for axis in axes if isinstance(axis.get_major_formatter(), LogFormatter)]
    formulas = {text for axis in logarithmic for text in axis.get_ticklabels(which="both")}  # powers of ten
    for text in set(figure.findobj(Text)) - formulas:
        text.set_parse_math(text.get_text() == ALPHA_BAR)
        text.set_text(to_drawable(text.get_text()))
        if font := find_font(text.get_text()):
            text.set_fontfamily(["DejaVu Sans", font[0]])
    buffer = BytesIO()
    with catch_warnings():
        simplefilter("ignore", UserWarning)  # of characters that no font has, which find_font reports
        figure.savefig(buffer, format="png", dpi=figure.dpi)
    return buffer.getvalue()


def render_figure(figure) -> Image.Image:
    """Return a figure as the RGB image that `save_figure` would write."""
    return Image.open(BytesIO(encode_figure(figure))).convert("RGB")


def create_axes(rows: int, columns: int, title: str):
    """Return a matplotlib Figure, independent of pyplot's global state, and its axes (rows, columns)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * columns, 3.7 * rows), dpi=DPI, layout="constrained")
    figure.suptitle(title, fontsize="large")
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flatten():
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def set_log_scale(ax) -> None:
    """Make the vertical axis logarithmic, with tick labels such as 0.05 instead of 5 x 10^-2."""
    from matplotlib.ticker import LogFormatter

    class PlainFormatter(LogFormatter):
        def __call__(self, value, position=None) -> str:
            return f"{value:g}" if super().__call__(value, position) else ""

    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(PlainFormatter())
    ax.yaxis.set_minor_formatter(PlainFormatter())


def plot_tiles(
    images: Tensor,
    row_names: Sequence[str] = (),
    column_names: Sequence[str] = (),
    title: str = "",
    groups: Sequence[tuple[str, int]] = (),
):
    """Return a matplotlib Figure with a table of images, enlarged by a whole factor without resampling.

    Args:
        images: uint8 (rows, columns, C, H, W). Transparent images are drawn on a
            checkerboard.
        row_names: text left of each row, may have several lines.
        column_names: text under each column, may have several lines.
        title: text above the table.
        groups: (heading, number of columns) of adjacent groups of columns, drawn
            apart from each other.
    """
    from matplotlib.figure import Figure

    rows, columns, _, height, width = images.shape
    zoom = max(1, -(-MIN_TILE // max(height, width)))
    tile_h, tile_w = height * zoom, width * zoom
    x, right = [], -GROUP_GAP
    for heading, count in groups or [("", columns)]:
        start = right + GROUP_GAP
        right = start + max(count * (tile_w + GAP), _text_width(heading))
        x += [start + k * (tile_w + GAP) for k in range(count)]
    left = MARGIN + max([_text_width(name) + 8 for name in row_names], default=0)
    top = MARGIN + _text_height([heading for heading, _ in groups]) + (_text_height([title]) + 4 if title else 0)
    bottom = top + rows * (tile_h + GAP)
    total_w = left + max(right, _text_width(title, "bold") - left + MARGIN) + MARGIN - GAP
    total_h = bottom + _text_height(column_names) + MARGIN

    canvas = Image.new("RGB", (total_w, total_h), "white")
    for row in range(rows):
        for column in range(columns):
            tile = to_pil(images[row, column].repeat_interleave(zoom, -2).repeat_interleave(zoom, -1))
            canvas.paste(add_checkerboard(tile).convert("RGB"), (left + x[column], top + row * (tile_h + GAP)))
    figure = Figure(figsize=(total_w / DPI, total_h / DPI), dpi=DPI)
    figure.figimage(np.asarray(canvas))

    def write(text: str, px: float, py: float, **place) -> None:
        figure.text(px / total_w, 1 - py / total_h, text, fontsize=FONT * 72 / DPI, linespacing=1.2, **place)

    for row, name in enumerate(row_names):
        write(name, left - 8, top + (row + 0.5) * (tile_h + GAP), ha="right", va="center")
    for column, name in enumerate(column_names):
        write(name, left + x[column] + tile_w / 2, bottom + 2, ha="center", va="top")
    ends = torch.tensor([count for _, count in groups], dtype=torch.long).cumsum(0).tolist()
    for (heading, count), end in zip(groups, ends, strict=True):
        write(heading, left + x[end - count], top - 6, va="bottom")
    if title:
        write(title, MARGIN, MARGIN, va="top", weight="bold")
    return figure


def _text_height(texts: Sequence[str]) -> int:
    """Return the height of the tallest text in px with some space below it, 0 for no text."""
    return max([round(FONT * 1.45 * (text.count("\n") + 1)) + 6 for text in texts], default=0)


def _text_width(text: str, weight: str = "normal") -> int:
    """Return the width of the longest line in px."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    font = FontProperties(weight=weight)
    lines = [line for line in text.splitlines() if line.strip()]
    plain = [to_drawable(line).replace("$", r"\$") for line in lines]  # else TextPath looks for formulas
    widths = [TextPath((0, 0), line, size=FONT, prop=font).get_extents().width for line in plain]
    return round(max(widths, default=0) * 1.1)
