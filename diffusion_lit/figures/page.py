"""One HTML page of one or several runs: everything is in the file, and it runs no script but its own few lines."""

import base64
import re
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from diffusion_lit.config.schema import METRIC_COLUMNS
from diffusion_lit.figures import curves
from diffusion_lit.figures.style import plots
from diffusion_lit.runs import run_dir
from diffusion_lit.runs.metrics_file import read_metrics
from diffusion_lit.runs.resume import flatten_config
from diffusion_lit.system.console import progress_bar
from diffusion_lit.system.errors import UserError

COMPARED = ("train/loss", "val/loss", "val/error", "fd", "class_accuracy", "images_per_second")  # columns, run by run
COMPARED_RUNS = 10  # curves that can be told apart in one figure
EVALUATIONS = 20  # that are shown, the newest
FILES = {"Command": "command.txt", "Settings": "config.yaml", "Versions": "versions.txt"}
COLUMNS = [name for names in METRIC_COLUMNS.values() for name in names]


def page(runs: Sequence[Path], sweep: Path | None, grids: int) -> str:
    """Return the page as HTML. A part of a run that is missing or damaged is left out, and the page says so.

    Args:
        grids: sample grids of a run at most.
    """
    environment = Environment(
        loader=PackageLoader("diffusion_lit", "figures"),
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined,
    )  # fmt: skip
    several = len(runs) > 1
    with progress_bar("runs", shown=several) as bar:
        described = [describe_run(run, grids) for run in bar.track(runs)]
    return environment.get_template("page.html").render(
        title=sweep.resolve().name if sweep else " and ".join(run.resolve().name for run in runs[:3]),
        sweep=sweep and _uri_of(sweep / "results.png"),
        differences=find_differences(runs) if several else None,
        compared=compare_curves(runs[:COMPARED_RUNS]) if several else None,
        runs=described,
    )


def describe_run(run: Path, grids: int) -> dict:
    """Return what the template shows of a run."""
    files = sorted((run / "samples").glob("step-*.png"))
    count = min(grids, len(files))
    kept = [files[round(k * (len(files) - 1) / max(1, count - 1))] for k in range(count - 1)] + files[-1:]
    rows = _read_metrics(run)
    return {
        "name": str(run_dir.display_path(run)),
        "summary": summarize(run_dir.read_result(run), rows),
        "samples": [(int(re.sub(r"\D", "", file.stem)), _uri_of(file)) for file in kept],
        "film": files and _uri_of(files[-1].with_suffix(".gif")),
        "curves": draw_curves(rows) if rows else [],
        "evaluations": list_evaluations(run),
        "files": {
            title: (run / name).read_text(errors="replace") for title, name in FILES.items() if (run / name).is_file()
        },
    }


def summarize(result: dict, metrics: list[dict[str, str]]) -> list[tuple[str, str]]:
    """Return how a run ended, its times and its numbers, as rows of (name, value)."""
    rows = [("status", result.get("status", "unfinished"))]
    rows += [(key, _format(value)) for key, value in result.items() if _is_number(value) and key != "exit_code"]
    rows += [("error", result["error"])] if result.get("error") else []
    rows += [("last step in metrics.csv", metrics[-1]["step"])] if metrics else []
    memory = [float(row["memory_gib"]) for row in metrics if row.get("memory_gib")]
    return rows + ([("memory, at most", f"{max(memory):.2f} GiB")] if memory else [])


def draw_curves(rows: list[dict[str, str]]) -> list[tuple[str, str]]:
    """Return the figures of metrics.csv as pairs of image and description."""
    figures = [(_uri_of_figure(curves.figure_of(rows, "")), "curves of training")]
    names = [*COLUMNS, "train/grad_norm", "images_per_second", "memory_gib"]
    if more := [name for name in names if curves.series(rows, name)[0]]:
        figures.append((_draw_columns({"": rows}, more, columns=3), "metrics, gradient and times"))
    return figures


def compare_curves(runs: Sequence[Path]) -> str | None:
    """Return a figure with the curves of the runs over each other; None if no run has any."""
    rows = {run.name: _read_metrics(run) for run in runs}
    names = [name for name in COMPARED if any(curves.series(found, name)[0] for found in rows.values())]
    return _draw_columns(rows, names, columns=2) if names else None


def _draw_columns(runs: dict[str, list[dict[str, str]]], names: Sequence[str], columns: int) -> str:
    """Draw a plot for each column of metrics.csv, with a line for each run."""
    figure, axes = plots(-(-len(names) // columns), columns, "")
    for ax, name in zip(axes.flatten(), names, strict=False):
        for run, rows in runs.items():
            steps, values = curves.series(rows, name)
            ax.plot(steps, values, label=run, marker="o" if len(steps) < 20 else "", markersize=3)
        ax.set(title=name.replace("_", " "), xlabel="optimizer step")
        if len(runs) == 1:
            ax.set_ylim(min(0, *values), 1.1 * max(0, *values) or None)
    for ax in axes.flatten()[len(names) :]:
        ax.remove()
    if len(runs) > 1:
        axes[0, 0].legend(frameon=False, fontsize="small")
    return _uri_of_figure(figure)


def list_evaluations(run: Path) -> dict:
    """Return the newest results of `evaluate` as a table, and the newest image of the nearest neighbors."""
    files = sorted(run.glob("evaluations/**/result.json"), key=lambda file: file.stat().st_mtime_ns)[-EVALUATIONS:]
    results = [result for file in reversed(files) if "settings" in (result := run_dir.read_result(file.parent))]
    names = [name for name in COLUMNS if any(name in result for result in results)]
    rows = []
    for result in results:
        settings = result["settings"]
        scale = settings.get("guidance_scale")
        sampling = f"{settings['checkpoint']}, {settings['weights']}, {settings['sampler'].get('name')}"
        sampling += f", NFE {result['nfe']:g}" + ("" if scale in (None, 1) else f", guidance {scale:g}")
        against = f"{settings['features']['name']}, {settings['reference']['split']}"
        cells = [_format_interval(result, name) for name in names]
        rows.append([sampling, f"{result['num_images']:,}", against, *cells])
    panels = (_uri_of(file.parent / "neighbors.png") for file in reversed(files))
    panel = next(filter(None, panels), None)
    return {"rows": rows, "heads": ["settings", "images", "features, reference", *names], "panel": panel}


def find_differences(runs: Sequence[Path]) -> dict:
    """Return a table with a row per run: settings that differ between the runs, and the numbers of their results."""
    configs, results = [flatten_config(_read_config(run)) for run in runs], [run_dir.read_result(run) for run in runs]
    keys = dict.fromkeys(key for config in configs for key in config)
    keys = [key for key in keys if len({str(config.get(key)) for config in configs}) > 1 and key != "run_dir"]
    numbers = dict.fromkeys(key for result in results for key, value in result.items() if _is_number(value))
    numbers.pop("exit_code", None)
    rows = []
    for run, config, result in zip(runs, configs, results, strict=True):
        values = [_format(result[key]) if _is_number(result.get(key)) else "" for key in numbers]
        rows.append([run.name, *[config.get(key, "") for key in keys], result.get("status", ""), *values])
    return {"rows": rows, "heads": ["run", *keys, "status", *numbers]}


def _read_metrics(run: Path) -> list[dict[str, str]]:
    return read_metrics(run / "metrics.csv") if (run / "metrics.csv").is_file() else []


def _read_config(run: Path) -> dict:
    try:
        return run_dir.read_run_config(run)
    except UserError:
        return {}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _format(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _format_interval(result: dict, name: str) -> str:
    if not _is_number(result.get(name)):
        return ""
    low, high = result.get(f"{name}_low"), result.get(f"{name}_high")
    return _format(result[name]) + ("" if low is None else f" ({_format(low)} to {_format(high)})")


def _uri_of_figure(figure) -> str:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=figure.dpi)
    return _uri(buffer.getvalue(), "png")


def _uri_of(file: Path) -> str | None:
    """Return an image as a data URI; None if there is no such file."""
    return _uri(file.read_bytes(), file.suffix[1:]) if file.is_file() else None


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
