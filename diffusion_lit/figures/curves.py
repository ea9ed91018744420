"""metrics.csv as curves."""

from pathlib import Path

from diffusion_lit.figures.style import BLUE, GREEN, GREY, ORANGE, logarithmic, plots, save
from diffusion_lit.figures.subject import Subject
from diffusion_lit.runs.metrics_file import read_metrics
from diffusion_lit.system.errors import Exit, UserError
from diffusion_lit.training.noise_levels import BINS

LOSSES = {
    "train/loss": ("training", GREY),
    "val/loss_raw": ("validation, raw", ORANGE),
    "val/loss": ("validation, EMA", BLUE),
}


def series(rows: list[dict[str, str]], column: str) -> tuple[list[int], list[float]]:
    """Steps and values of a column of metrics.csv, where it was measured."""
    measured = [row for row in rows if row.get(column)]
    return [int(row["step"]) for row in measured], [float(row[column]) for row in measured]


def figure_of(rows: list[dict[str, str]], title: str):
    """Losses; error of the noise estimate; error by noise level; learning rate. All over optimizer steps."""
    from matplotlib import colormaps
    from matplotlib.ticker import MaxNLocator

    figure, axes = plots(2, 2, title)
    (losses, error), (levels, rate) = axes
    for column, (name, colour) in LOSSES.items():
        _curve(losses, rows, column, colour, name)
    losses.set_title("loss")
    _curve(error, rows, "val/error", BLUE, "EMA")
    error.set(title="validation error of the noise estimate")
    for k, name in enumerate(BINS):
        colour = colormaps["cividis"](k / (len(BINS) - 1))
        _curve(levels, rows, f"val/ema_log_snr/{name}", colour, name)
    levels.set_title("validation error by log snr, EMA")
    _curve(rate, rows, "train/lr", GREEN, "learning rate")
    rate.set(title="learning rate", ylim=(0, None))
    for ax in (losses, error, levels, rate):
        ax.set_xlabel("optimizer step")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        if not ax.lines:
            ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", color=GREY)
    if losses.lines:
        logarithmic(losses)
        losses.legend(frameon=False)
    if levels.lines:
        logarithmic(levels)
        levels.legend(title="log snr", frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _curve(ax, rows: list[dict[str, str]], column: str, colour, name: str) -> None:
    steps, values = series(rows, column)
    if any(value == value for value in values):  # a bin that the schedule does not reach is NaN
        ax.plot(steps, values, color=colour, label=name, marker="o" if len(steps) < 20 else "", markersize=3)


def draw_curves(subject: Subject, out: Path) -> list[Path]:
    """curves.png."""
    metrics = subject.run / "metrics.csv"
    if not metrics.exists():
        raise UserError(Exit.DATA, f"{subject.run} has no metrics.csv")
    return [save(figure_of(read_metrics(metrics), f"Training: {subject.name}"), out)]
