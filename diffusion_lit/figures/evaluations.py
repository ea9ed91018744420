"""Figures of evaluations: quality over cost of sampling settings, and differences from the first settings."""

from collections.abc import Sequence
from pathlib import Path

from diffusion_lit.figures.style import BLUE, GRAY, ORANGE, create_axes, save_figure
from diffusion_lit.runs.sweeps import HIGHER_IS_BETTER, Job, rank_value, shorten_number
from diffusion_lit.system.console import create_table

MAX_LABELS = 12  # of points; of more only those of the front have a label


def sort_jobs(jobs: list[Job], metric: str) -> list[Job]:
    """Return the jobs that have the metric, best first, cheaper first where equal."""
    measured = [job for job in jobs if job.value(metric) is not None]
    return sorted(measured, key=lambda job: (rank_value(job.value(metric), metric), job.result["nfe"]))


def find_pareto_front(jobs: list[Job], metric: str) -> list[Job]:
    """Return the jobs with a better metric than every job of the same NFE or less, cheapest first."""
    front = []
    for job in sort_jobs(jobs, metric):
        if not front or job.result["nfe"] < front[0].result["nfe"]:
            front.insert(0, job)
    return front


def format_pareto(jobs: list[Job], keys: list[str], metric: str, metrics: list[str]):
    """Return a rich Table with a row for each evaluation, best first; the Pareto front is marked."""
    table = create_table(keys, ["NFE", f"{metric} and its 95 % interval", *metrics])
    front = find_pareto_front(jobs, metric)
    for job in sort_jobs(jobs, metric):
        low, high = (job.result.get(f"{metric}_{end}") for end in ("low", "high"))
        interval = f"  [{low:.4g}, {high:.4g}]" if low is not None else ""
        others = [f"{value:.4g}" if (value := job.value(name)) is not None else "" for name in metrics]
        values = [shorten_number(job.overrides.get(key, "")) for key in keys]
        mark = "Pareto front" if job in front else ""
        table.add_row(*values, f"{job.result['nfe']:g}", f"{job.value(metric):.4g}{interval}", *others, mark)
    return table


def draw_pareto(jobs: list[Job], keys: list[str], metric: str, path: Path) -> Path:
    """Write a plot of the metric over NFE: a point with its interval for each job, the Pareto front as a line."""
    figure, ((ax,),) = create_axes(1, 1, f"{metric} ({'higher' if metric in HIGHER_IS_BETTER else 'lower'} is better)")
    figure.set_size_inches(8, 5)
    front, jobs = find_pareto_front(jobs, metric), [job for job in jobs if job.value(metric) is not None]
    costs = dict.fromkeys(sorted(job.result["nfe"] for job in jobs), 0)
    ticks = list(costs)
    for job in jobs:
        value, cost = job.value(metric), job.result["nfe"]
        x, costs[cost] = cost * 1.015 ** costs[cost], costs[cost] + 1  # side by side where the cost is equal
        low, high = (job.result.get(f"{metric}_{end}", value) for end in ("low", "high"))
        color = ORANGE if job in front else BLUE
        error = [[abs(value - low)], [abs(high - value)]]
        ax.errorbar(x, value, yerr=error, fmt="o", ms=4, color=color, capsize=2, elinewidth=0.6)
        if job in front or len(jobs) <= MAX_LABELS:
            label = "  ".join(shorten_number(job.overrides.get(key, "")) for key in keys)
            place = 6, -12 if job in front else 5  # pt, below or above the point
            ax.annotate(label, (x, value), place, textcoords="offset points", fontsize=8, color=color)
    line = [job.result["nfe"] for job in front], [job.value(metric) for job in front]
    ax.plot(*line, color=GRAY, zorder=0, label="Pareto front")
    ax.legend()
    ax.set_xlabel(f"network evaluations per image (NFE), labels: {', '.join(keys)}" if keys else "NFE")
    ax.set_ylabel(f"{metric} and its 95 % interval")
    ax.set_xscale("log")
    ax.set_xticks(ticks, [f"{cost:g}" for cost in ticks])
    ax.minorticks_off()
    ax.margins(x=0.1)  # room for the label of the last point
    return save_figure(figure, path)


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
