"""Training curves, drawn from metrics.csv."""

from pathlib import Path

from diffusion_lit.figures import style
from diffusion_lit.figures.style import BLUE, GRAY, GREEN, ORANGE
from diffusion_lit.figures.subject import Subject
from diffusion_lit.runs.metrics_file import read_metrics
from diffusion_lit.system.errors import DataError
from diffusion_lit.training.noise_levels import BINS

LOSSES = {
    "train/loss": ("training", GRAY),
    "val/loss_raw": ("validation, trained weights", ORANGE),
    "val/loss": ("validation, EMA", BLUE),
}


def read_series(rows: list[dict[str, str]], column: str) -> tuple[list[int], list[float]]:
    """Return the steps and the values of a column of metrics.csv, for the rows that have a value."""
    measured = [row for row in rows if row.get(column)]
    return [int(row["step"]) for row in measured], [float(row[column]) for row in measured]


def plot_curves(rows: list[dict[str, str]], title: str):
    """Return a Figure of loss, validation error, error by noise level and learning rate over optimizer steps."""
    from matplotlib import colormaps
    from matplotlib.ticker import MaxNLocator

    figure, axes = style.create_axes(2, 2, title)
    (losses, error), (levels, rate) = axes
    for column, (name, color) in LOSSES.items():
        _plot_column(losses, rows, column, color, name)
    losses.set_title("loss")
    _plot_column(error, rows, "val/error", BLUE, "EMA")
    error.set_title("validation error of the noise estimate")
    for k, name in enumerate(BINS):
        color = colormaps["cividis"](k / (len(BINS) - 1))
        _plot_column(levels, rows, f"val/ema_log_snr/{name}", color, name.replace("_", " "))
    levels.set_title("validation error by log SNR, EMA")
    _plot_column(rate, rows, "train/lr", GREEN, "learning rate")
    rate.set(title="learning rate", ylim=(0, None))
    for ax in axes.flatten():
        ax.set_xlabel("optimizer step")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        style.label_single_points(ax)
        if not ax.lines:
            ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", color=GRAY)
    if losses.lines:
        style.set_log_scale(losses)
        losses.legend(frameon=False)
    if levels.lines:
        style.set_log_scale(levels)
        levels.legend(title="log SNR", frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _plot_column(ax, rows: list[dict[str, str]], column: str, color, name: str) -> None:
    steps, values = read_series(rows, column)
    if any(value == value for value in values):  # noise levels outside the schedule are NaN
        ax.plot(steps, values, color=color, label=name, marker="o" if len(steps) < 20 else "", markersize=3)


def draw_curves(subject: Subject, out: Path) -> list[Path]:
    """Write curves.png.

    Raises:
        UserError: exit 3 if the run has no metrics.csv.
    """
    metrics = subject.run / "metrics.csv"
    if not metrics.exists():
        raise DataError(f"{subject.run} has no metrics.csv")
    return [style.save_figure(plot_curves(read_metrics(metrics), f"Training: {subject.name}"), out)]
