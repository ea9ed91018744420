"""results.png of a sweep: the metric by what was swept. Points are jobs, bars 95 % intervals of means over seeds."""

import math
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

from diffusion_lit.runs.sweeps import HIGHER_IS_BETTER, JobGroup, shorten_number
from diffusion_lit.system.files import write_atomically

MANY = 10  # more colours or panels cannot be told apart
SPAN = 20  # from this ratio on an axis is logarithmic


class Panel(NamedTuple):
    title: str
    key: int | None  # on the axis, as a place in a group's values; None where nothing but seeds was swept
    colour: int | None  # as well
    series: dict[str, list[JobGroup]]  # by the value that has a colour
    means: bool  # else only points


def draw(groups: list[JobGroup], keys: list[str], metric: str, sweep: Path) -> None:
    """Write results.png into the folder of the sweep."""
    with write_atomically(sweep / "results.png") as beside:
        figure_of(groups, keys, metric, sweep.resolve().name).savefig(beside, format="png", dpi=120)


def figure_of(groups: list[JobGroup], keys: list[str], metric: str, title: str):
    """A matplotlib Figure; no window and no global state of pyplot."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    groups = sorted(groups, key=lambda group: group.first)
    panels = panels_of(groups, keys)
    labels = dict.fromkeys(label for panel in panels for label in panel.series)
    colours = dict(zip(labels, cycle(colormaps["tab10"].colors), strict=False))
    columns = 2 if len(panels) == 4 else min(len(panels), 3)
    rows = math.ceil(len(panels) / columns)
    height = max(panel_height(panel) for panel in panels)
    figure = Figure(figsize=(2.5 + (5.5, 8, 11)[columns - 1], 1 + height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for ax, panel in zip(axes, panels, strict=False):
        draw_panel(ax, panel, keys, metric, colours)
        scale_metric(ax, panel, groups, metric)
    for ax in axes[len(panels) :]:
        ax.remove()
    repeated = any(group.half is not None for group in groups)
    note = ["points are jobs"] + ["bars the 95 % interval of the mean over seeds"] * (panels[0].means and repeated)
    note += ["crosses jobs without a value"] * any(len(group.numbers) < len(group.jobs) for group in groups)
    figure.suptitle(f"{title}\n{', '.join(note)}", fontsize="medium")
    if panels[0].colour is not None:
        shown = {
            label: handle for ax in figure.axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
        }
        labels = [label for label in labels if label in shown]
        handles, title = [shown[label] for label in labels], keys[panels[0].colour]
        figure.legend(handles, labels, title=title, loc="outside right center", frameon=False)
    return figure


def panels_of(groups: list[JobGroup], keys: list[str]) -> list[Panel]:
    """The key with most values makes the axis, the next one colours, the rest panels. Where these would be too many
    (what optuna tried), every key has a panel with all jobs in it, without means: they would be over the other keys.
    """
    if not keys:
        return [Panel("", None, None, {"": groups}, means=True)]
    axis, *others = sorted(range(len(keys)), key=lambda k: -len({group.values[k] for group in groups}))
    colour, rest = others[0] if others else None, others[1:]
    panels: dict[str, dict[str, list[JobGroup]]] = {}
    for group in groups:
        title = "  ".join(f"{keys[k]}={shorten_number(group.values[k])}" for k in rest)
        label = "" if colour is None else shorten_number(group.values[colour])
        panels.setdefault(title, {}).setdefault(label, []).append(group)
    if len(panels) > MANY or any(len(series) > MANY for series in panels.values()):
        return [Panel("", k, None, {"": groups}, means=False) for k in range(len(keys))]
    return [Panel(title, axis, colour, series, means=True) for title, series in panels.items()]


def names_of(panel: Panel) -> list[str]:
    """The values on the axis, in the order of the jobs."""
    groups = sorted((group for same in panel.series.values() for group in same), key=lambda group: group.first)
    return list(dict.fromkeys("" if panel.key is None else group.values[panel.key] for group in groups))


def numbers_of(names: list[str]) -> list[float] | None:
    """The values as numbers, if all of them are."""
    try:
        numbers = [float(name) for name in names]
    except ValueError:
        return None
    return numbers if all(map(math.isfinite, numbers)) else None


def panel_height(panel: Panel) -> float:
    names = names_of(panel)
    return 3.6 if numbers_of(names) else 1.2 + 0.2 * len(names) * max(2, len(panel.series))


def draw_panel(ax, panel: Panel, keys: list[str], metric: str, colours: dict) -> None:
    """Numbers stand on the horizontal axis, the metric above them. Names stand on the vertical one, where they can be
    read whatever their length, and the metric lies on the horizontal one.
    """
    names = names_of(panel)
    numbers = numbers_of(names)
    key, worse_edge = "" if panel.key is None else keys[panel.key], 0.0 if metric in HIGHER_IS_BETTER else 1.0
    step = 0.7 / len(panel.series)

    def place(group: JobGroup, k: int) -> float:
        if panel.key is None:
            return 0.0
        if numbers:
            return float(group.values[panel.key])
        return names.index(group.values[panel.key]) + step * (k - (len(panel.series) - 1) / 2)

    for k, (label, groups) in enumerate(panel.series.items()):
        colour = colours[label]
        placed = sorted(((place(group, k), group) for group in groups), key=lambda pair: pair[0])
        means = [(x, group.mean, group.half or 0.0) for x, group in placed if group.numbers and panel.means]
        lost = [(x, worse_edge) for x, group in placed if len(group.numbers) < len(group.jobs)]
        if means:
            error = {"yerr" if numbers else "xerr": [half for _, _, half in means]}
            style = {"fmt": "D-" if numbers else "D", "markersize": 6, "markerfacecolor": "white", "capsize": 3}
            ax.errorbar(*swapped(means, numbers), **error, **style, color=colour, linewidth=1, label=label)
        points = swapped([(x, y) for x, group in placed for y in group.numbers], numbers)
        ax.plot(*points, "o", color=colour, markersize=4, markeredgewidth=0, alpha=0.7, zorder=4)
        if lost:
            along = ax.get_xaxis_transform() if numbers else ax.get_yaxis_transform()
            style = {"color": colour, "markersize": 7, "clip_on": False, "zorder": 5, "label": None if means else label}
            ax.plot(*swapped(lost, numbers), "x", transform=along, **style)
    ax.set_title(panel.title, fontsize="medium")
    ax.grid(alpha=0.3)
    if numbers:
        ax.set_xlabel(key)
        if min(numbers) > 0 and max(numbers) > SPAN * min(numbers):
            ax.set_xscale("log")
    else:
        ax.set_ylabel(key)
        ax.set_yticks(range(len(names)), [shorten_number(name)[:40] for name in names])
        ax.tick_params(axis="y", length=3 if key else 0)
        ax.set_ylim(len(names) - 0.5, -0.5)


def swapped(points: list[tuple[float, ...]], numbers: list[float] | None) -> list[list[float]]:
    """Coordinates along the horizontal and the vertical axis of (place, metric)."""
    columns = [[point[0] for point in points], [point[1] for point in points]]
    return columns if numbers else columns[::-1]


def scale_metric(ax, panel: Panel, groups: list[JobGroup], metric: str) -> None:
    """The same limits in every panel: all points, and of the intervals as much as leaves the points apart (that of two
    seeds can be a hundred times as wide as they are).
    """
    values = [number for group in groups for number in group.numbers]
    low, high = min(values), max(values)
    ends = [group.mean + sign * (group.half or 0.0) for group in groups if group.numbers for sign in (-1, 1)]
    log = metric not in HIGHER_IS_BETTER and low > 0 and high > SPAN * low
    if log:
        limits = max(min(ends), low / 3), min(max(ends), high * 3)
        limits = limits[0] / 1.2, limits[1] * 1.2
    else:
        room = high - low or abs(low) / 10 or 1.0
        limits = max(min(ends), low - room), min(max(ends), high + room)
        margin = (limits[1] - limits[0]) / 20 or room
        limits = limits[0] - margin, limits[1] + margin
    better = "higher" if metric in HIGHER_IS_BETTER else "lower"
    vertical = numbers_of(names_of(panel)) is not None
    (ax.set_ylim if vertical else ax.set_xlim)(*limits)
    (ax.set_ylabel if vertical else ax.set_xlabel)(f"{metric} ({better} is better)")
    if log:
        (ax.set_yscale if vertical else ax.set_xscale)("log")
