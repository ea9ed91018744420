"""results.png of a sweep: the metric over the swept values, with 95 % intervals of the means over seeds."""

import math
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

from diffusion_lit.figures.style import save_figure
from diffusion_lit.runs.sweeps import HIGHER_IS_BETTER, JobGroup, shorten_number

MAX_SERIES = 10  # colors or panels that a reader can tell apart
LOG_RATIO = 20  # largest to smallest value from which an axis is logarithmic


class Panel(NamedTuple):
    """One plot of the figure: groups by color, placed along the values of one key."""

    title: str
    key: int | None  # index into the swept keys, None where only seeds were swept
    series: dict[str, list[JobGroup]]  # by the label of their color
    has_means: bool

    @property
    def names(self) -> list[str]:
        """Return the values on the axis, in the order of the jobs."""
        groups = sorted((group for same in self.series.values() for group in same), key=lambda group: group.first)
        return list(dict.fromkeys("" if self.key is None else group.values[self.key] for group in groups))

    @property
    def numbers(self) -> list[float] | None:
        """Return the values on the axis as numbers; None unless all are finite numbers."""
        try:
            numbers = [float(name) for name in self.names]
        except ValueError:
            return None
        return numbers if all(map(math.isfinite, numbers)) else None

    @property
    def height(self) -> float:
        """Return the height in inches."""
        return 3.6 if self.numbers else 1.2 + 0.2 * len(self.names) * max(2, len(self.series))


def draw_sweep(groups: list[JobGroup], keys: list[str], metric: str, sweep: Path) -> None:
    """Write results.png into the folder of a sweep."""
    save_figure(plot_sweep(groups, keys, metric, sweep.resolve().name), sweep / "results.png")


def plot_sweep(groups: list[JobGroup], keys: list[str], metric: str, title: str):
    """Return the Figure of a sweep.

    Args:
        groups: jobs of one combination of values, over seeds.
        keys: the swept keys, in the order of `JobGroup.values`.
        metric: on the other axis.
        title: first line of the title.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    groups = sorted(groups, key=lambda group: group.first)
    panels, color_key = split_panels(groups, keys)
    labels = dict.fromkeys(label for panel in panels for label in panel.series)
    colors = dict(zip(labels, cycle(colormaps["tab10"].colors), strict=False))
    columns = 2 if len(panels) == 4 else min(len(panels), 3)
    rows = math.ceil(len(panels) / columns)
    size = 2.5 + (5.5, 8, 11)[columns - 1], 1 + rows * max(panel.height for panel in panels)
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for ax, panel in zip(axes, panels, strict=False):
        draw_panel(ax, panel, keys, metric, colors)
        scale_metric(ax, panel, groups, metric)
    for ax in axes[len(panels) :]:
        ax.remove()
    notes = ["points are jobs"]
    if panels[0].has_means and any(group.half_width is not None for group in groups):
        notes.append("bars are 95 % intervals of the mean over seeds")
    if any(len(group.numbers) < len(group.jobs) for group in groups):
        notes.append("crosses are jobs without a value")
    figure.suptitle(f"{title}\n{', '.join(notes)}", fontsize="medium")
    if color_key is not None:
        handles = {}
        for ax in figure.axes:
            handles |= dict(zip(*ax.get_legend_handles_labels()[::-1], strict=True))
        names = [label for label in labels if label in handles]
        figure.legend(
            [handles[name] for name in names], names, title=color_key, loc="outside right center", frameon=False
        )
    return figure


def split_panels(groups: list[JobGroup], keys: list[str]) -> tuple[list[Panel], str | None]:
    """Return the panels of a figure and the key that has colors.

    The key with most values is the axis, the next one has colors, the others have
    panels. Where these are too many (trials of optuna), each key gets a panel with
    all jobs and no means, which would mix the other keys.
    """
    if not keys:
        return [Panel("", None, {"": groups}, has_means=True)], None
    axis, *others = sorted(range(len(keys)), key=lambda k: -len({group.values[k] for group in groups}))
    panels: dict[str, dict[str, list[JobGroup]]] = {}
    for group in groups:
        title = "  ".join(f"{keys[k]}={shorten_number(group.values[k])}" for k in others[1:])
        label = shorten_number(group.values[others[0]]) if others else ""
        panels.setdefault(title, {}).setdefault(label, []).append(group)
    if len(panels) > MAX_SERIES or any(len(series) > MAX_SERIES for series in panels.values()):
        return [Panel("", k, {"": groups}, has_means=False) for k in range(len(keys))], None
    color_key = keys[others[0]] if others else None
    return [Panel(title, axis, series, has_means=True) for title, series in panels.items()], color_key


def draw_panel(ax, panel: Panel, keys: list[str], metric: str, colors: dict) -> None:
    """Draw points, means with intervals and failed jobs.

    Numbers are on the horizontal axis with the metric above them. Names are on the
    vertical axis, where long names stay readable, and the metric is on the
    horizontal one.
    """
    names, numbers = panel.names, panel.numbers
    key, worse_edge = "" if panel.key is None else keys[panel.key], 0.0 if metric in HIGHER_IS_BETTER else 1.0
    step = 0.7 / len(panel.series)
    marks = {"color": None, "clip_on": False, "zorder": 5, "markersize": 7}

    def locate(group: JobGroup, k: int) -> float:
        if panel.key is None:
            return 0.0
        if numbers:
            return float(group.values[panel.key])
        return names.index(group.values[panel.key]) + step * (k - (len(panel.series) - 1) / 2)

    def orient(points: list[tuple[float, float]]) -> list[list[float]]:
        columns = [[point[0] for point in points], [point[1] for point in points]]
        return columns if numbers else columns[::-1]

    for k, (label, groups) in enumerate(panel.series.items()):
        located = sorted([(locate(group, k), group) for group in groups], key=lambda pair: pair[0])
        measured = [(x, group) for x, group in located if group.numbers and panel.has_means]
        failed = [(x, worse_edge) for x, group in located if len(group.numbers) < len(group.jobs)]
        if measured:
            error = {"yerr" if numbers else "xerr": [group.half_width or 0.0 for _, group in measured]}
            style = {"fmt": "D-" if numbers else "D", "markersize": 6, "markerfacecolor": "white", "capsize": 3}
            means = orient([(x, group.mean) for x, group in measured])
            ax.errorbar(*means, **error, **style, color=colors[label], linewidth=1, label=label)
        points = orient([(x, y) for x, group in located for y in group.numbers])
        ax.plot(*points, "o", color=colors[label], markersize=4, markeredgewidth=0, alpha=0.7, zorder=4)
        if failed:
            transform = ax.get_xaxis_transform() if numbers else ax.get_yaxis_transform()
            marks |= {"color": colors[label], "label": None if measured else label}
            ax.plot(*orient(failed), "x", transform=transform, **marks)
    ax.set_title(panel.title, fontsize="medium")
    ax.grid(alpha=0.3)
    if numbers:
        ax.set_xlabel(key)
        if min(numbers) > 0 and max(numbers) > LOG_RATIO * min(numbers):
            ax.set_xscale("log")
    else:
        ax.set_ylabel(key)
        ax.set_yticks(range(len(names)), [shorten_number(name)[:40] for name in names])
        ax.tick_params(axis="y", length=3 if key else 0)
        ax.set_ylim(len(names) - 0.5, -0.5)


def scale_metric(ax, panel: Panel, groups: list[JobGroup], metric: str) -> None:
    """Set label, scale and limits of the metric's axis, equal in all panels.

    The limits hold all points, and of the intervals at most so much that the points
        stay apart: the interval of two
    seeds can be a hundred times as wide as their difference.
    """
    values = [number for group in groups for number in group.numbers]
    low, high = min(values), max(values)
    ends = [group.mean + sign * (group.half_width or 0.0) for group in groups if group.numbers for sign in (-1, 1)]
    is_log = metric not in HIGHER_IS_BETTER and low > 0 and high > LOG_RATIO * low
    if is_log:
        limits = max(min(ends), low / 3) / 1.2, min(max(ends), high * 3) * 1.2
    else:
        spread = high - low or abs(low) / 10 or 1.0
        limits = max(min(ends), low - spread), min(max(ends), high + spread)
        margin = (limits[1] - limits[0]) / 20 or spread
        limits = limits[0] - margin, limits[1] + margin
    better = "higher" if metric in HIGHER_IS_BETTER else "lower"
    axis = "y" if panel.numbers else "x"
    scale = {f"{axis}scale": "log"} if is_log else {}
    ax.set(**{f"{axis}lim": limits, f"{axis}label": f"{metric} ({better} is better)"} | scale)
