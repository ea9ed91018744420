"""Settings of one checkpoint side by side: what they cost in network evaluations and what they give."""

from pathlib import Path

from diffusion_lit.figures.style import BLUE, GREY, ORANGE, plots, save
from diffusion_lit.runs.sweeps import HIGHER_IS_BETTER, Job, shorten_number


def front(jobs: list[Job], metric: str) -> list[Job]:
    """The jobs that no other one beats at its cost or less, cheapest first: nfe up, the metric strictly better."""
    sign = -1 if metric in HIGHER_IS_BETTER else 1
    best = []
    measured = [job for job in jobs if job.number(metric) is not None]
    for job in sorted(measured, key=lambda job: (job.result["nfe"], sign * job.number(metric))):
        if not best or sign * job.number(metric) < sign * best[-1].number(metric):
            best.append(job)
    return best


def table(jobs: list[Job], keys: list[str], metric: str, metrics: list[str]):
    """A rich table, a line for each evaluation, the best first; on the front is what nothing cheaper beats."""
    from rich.table import Table

    lines = Table(box=None, pad_edge=False)
    for name in (*keys, "NFE", f"{metric} and its 95 % interval", *metrics, ""):
        lines.add_column(name, justify="left" if name in keys else "right")
    sign, on_front = -1 if metric in HIGHER_IS_BETTER else 1, front(jobs, metric)
    for job in sorted((j for j in jobs if j.number(metric) is not None), key=lambda j: sign * j.number(metric)):
        low, high = (job.result.get(f"{metric}_{end}") for end in ("low", "high"))
        interval = f"  [{low:.4g}, {high:.4g}]" if low is not None else ""
        others = [f"{value:.4g}" if (value := job.number(name)) is not None else "" for name in metrics]
        values = [shorten_number(job.words.get(key, "")) for key in keys]
        mark = "on the front" if job in on_front else ""
        lines.add_row(*values, f"{job.result['nfe']:g}", f"{job.number(metric):.4g}{interval}", *others, mark)
    return lines


def draw(jobs: list[Job], keys: list[str], metric: str, path: Path) -> Path:
    """The metric over NFE: a point for each evaluation with its interval; the front as a line, and by name."""
    figure, ((ax,),) = plots(1, 1, f"{metric} ({'higher' if metric in HIGHER_IS_BETTER else 'lower'} is better)")
    figure.set_size_inches(8, 5)
    on_front = front(jobs, metric)
    measured = [job for job in jobs if job.number(metric) is not None]
    costs = sorted({job.result["nfe"] for job in measured})
    seen = dict.fromkeys(costs, 0)
    for job in measured:
        value, cost = job.number(metric), job.result["nfe"]
        place, seen[cost] = cost * 1.015 ** seen[cost], seen[cost] + 1  # side by side where the cost is the same
        ends = [job.result.get(f"{metric}_{end}", value) for end in ("low", "high")]
        colour = ORANGE if job in on_front else BLUE
        reach = [[abs(value - ends[0])], [abs(ends[1] - value)]]
        ax.errorbar(place, value, yerr=reach, fmt="o", ms=4, color=colour, capsize=2, elinewidth=0.6)
        if job in on_front:
            label = "  ".join(shorten_number(job.words.get(key, "")) for key in keys)
            ax.annotate(label, (place, value), (6, -12), textcoords="offset points", fontsize=8, color=colour)
    ax.plot([j.result["nfe"] for j in on_front], [j.number(metric) for j in on_front], color=GREY, zorder=0)
    ax.set_xlabel(f"network evaluations of an image (NFE); named: {', '.join(keys)} of the best" if keys else "NFE")
    ax.set_ylabel(f"{metric} and its 95 % interval")
    ax.set_xscale("log")
    ax.set_xticks(costs, [f"{cost:g}" for cost in costs])
    ax.minorticks_off()
    return save(figure, path)
