"""Differences of settings from the first ones, with their intervals."""

from collections.abc import Sequence
from pathlib import Path

from diffusion_lit.figures.style import BLUE, GRAY, ORANGE, create_axes, save_figure
from diffusion_lit.runs.sweeps import HIGHER_IS_BETTER


def draw_differences(
    baseline: str, rows: Sequence[tuple[str, tuple[float, float, float]]], metric: str, path: Path
) -> Path:
    """Write a plot with a line for each setting: difference and 95 % interval; gray where it includes 0.

    Args:
        baseline: label of the first settings, with which the others are compared.
        rows: label and (value, low, high) of each other setting.
        metric: name of the number.
        path: of the PNG.
    """
    better = "higher" if metric in HIGHER_IS_BETTER else "lower"
    figure, ((ax,),) = create_axes(1, 1, f"{metric}: difference from the first, {baseline} ({better} is better)")
    figure.set_size_inches(8, 1.6 + 0.3 * len(rows))
    for y, (_, (value, low, high)) in enumerate(rows):
        color = GRAY if low <= 0 <= high else ORANGE
        ax.errorbar(value, y, xerr=[[value - low], [high - value]], fmt="o", ms=4, color=color, capsize=2)
    ax.axvline(0, color=BLUE, linewidth=0.8)
    ax.set_yticks(range(len(rows)), [label for label, _ in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlabel("difference and its 95 % interval; gray: includes 0")
    return save_figure(figure, path)
