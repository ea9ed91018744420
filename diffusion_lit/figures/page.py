"""The HTML report of one or several runs, a single file with all its images."""

import base64
import re
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from diffusion_lit.config.metric_columns import COLUMNS
from diffusion_lit.config.secrets import hide_paths, hide_paths_of_commands
from diffusion_lit.figures.curves import plot_curves, read_series
from diffusion_lit.figures.style import create_axes, encode_figure, label_single_points
from diffusion_lit.runs import run_dir, sweeps
from diffusion_lit.runs.metrics_file import read_metrics
from diffusion_lit.runs.resume import flatten_config
from diffusion_lit.system.console import escape_controls, escape_lines, join_names, progress_bar
from diffusion_lit.system.errors import UserError

# curves of all runs
COMPARED = ("train/loss", "val/loss", "val/error", "kid", "fd", "class_accuracy", "images_per_second")
MAX_CURVES = 10  # runs in one plot
MAX_KEYS = 4  # in the name of a curve
MAX_EVALUATIONS = 20  # rows of the table, newest first
FILES = {"Command": "command.txt", "Configuration": "config.yaml", "Versions": "versions.txt"}


def render_page(
    runs: Sequence[Path], sweep: Path | None, grids: int, with_paths: bool = False, metric: str | None = None
) -> str:
    """Return the report as HTML. Missing or damaged parts of a run are left out, and the page says so.

    Args:
        runs: the run folders, the first one unfolded.
        sweep: folder of their sweep, whose results.png opens the page.
        grids: sample grids of each run at most.
        with_paths: whether absolute paths stay in it; else their last names.
        metric: that the runs are compared by, first in the table and among the
            curves.
    """
    environment = Environment(
        loader=PackageLoader("diffusion_lit", "figures"),
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined,
    )  # fmt: skip
    several = len(runs) > 1
    with progress_bar("runs", visible=several) as bar:
        described = [describe_run(run, grids) for run in bar.track(runs)]
    differences = find_differences(runs, metric) if several else None
    if not with_paths:
        described, differences = _hide_paths(described), differences and hide_paths(differences)
    return environment.get_template("page.html").render(
        title=sweep.resolve().name if sweep else join_names([run.resolve().name for run in runs], 3),
        sweep=sweep and _read_uri(sweep / "results.png"),
        differences=differences,
        compared=compare_curves(runs[:MAX_CURVES], label_runs(runs, differences), metric) if several else None,
        more_curves=max(0, len(runs) - MAX_CURVES),
        runs=described,
    )


def _hide_paths(described: list[dict]) -> list[dict]:
    """Return the variables of the runs without absolute paths: command lines first, where a space ends a path."""
    for run in described:
        files = run["files"]
        if "Command" in files:
            files["Command"] = hide_paths_of_commands(files["Command"])
        run |= {key: hide_paths(run[key]) for key in ("name", "result", "files")}
    return described


def describe_run(run: Path, grids: int) -> dict:
    """Return the variables of the template for a run."""
    files = sorted((run / "samples").glob("step-*.png"))
    count = min(grids, len(files))
    shown = [files[round(k * (len(files) - 1) / max(1, count - 1))] for k in range(count - 1)] + files[-1:]
    rows = _read_metrics(run)
    texts = {title: run / name for title, name in FILES.items() if (run / name).is_file()}
    return {
        "name": str(run_dir.display_path(run)),
        "result": run_dir.read_result(run),
        "last_step": rows[-1]["step"] if rows else None,
        "peak_memory": max([float(row["memory_gib"]) for row in rows if row.get("memory_gib")], default=None),
        "samples": [(int(re.sub(r"\D", "", file.stem)), _read_uri(file)) for file in shown],
        "film": files and _read_uri(files[-1].with_suffix(".gif")),
        "curves": draw_run_curves(rows) if rows else [],
        "evaluations": read_evaluations(run),
        "files": {title: escape_lines(path.read_bytes().decode(errors="replace")) for title, path in texts.items()},
    }


def draw_run_curves(rows: list[dict[str, str]]) -> list[tuple[str, str]]:
    """Return the plots of metrics.csv as pairs of data URI and description."""
    plots = [(_to_uri(plot_curves(rows, "")), "training curves")]
    names = [*COLUMNS, "train/grad_norm", "images_per_second", "memory_gib"]
    if measured := [name for name in names if read_series(rows, name)[0]]:
        plots.append((_plot_columns({"": rows}, measured, columns=3), "metrics, gradient norm, throughput and memory"))
    return plots


def compare_curves(runs: Sequence[Path], labels: Sequence[str], metric: str | None = None) -> str | None:
    """Return a plot with the curves of all runs under their labels; None if no run has any."""
    rows = {label: _read_metrics(run) for label, run in zip(labels, runs, strict=False)}
    columns = dict.fromkeys([*([metric] if metric else []), *COMPARED])
    names = [name for name in columns if any(read_series(of_run, name)[0] for of_run in rows.values())]
    return _plot_columns(rows, names, columns=2) if names else None


def _plot_columns(runs: dict[str, list[dict[str, str]]], names: Sequence[str], columns: int) -> str:
    """Return a figure with axes for each column of metrics.csv and a line for each run."""
    figure, axes = create_axes(-(-len(names) // columns), columns, "")
    for ax, name in zip(axes.flatten(), names, strict=False):
        for run, rows in runs.items():
            steps, values = read_series(rows, name)
            ax.plot(steps, values, label=run, marker="o" if len(steps) < 20 else "", markersize=3)
        ax.set(title=name, xlabel="optimizer step")
        label_single_points(ax)
        if len(runs) == 1:
            ax.set_ylim(min(0, *values), 1.1 * max(0, *values) or None)
    for ax in axes.flatten()[len(names) :]:
        ax.remove()
    if len(runs) > 1:
        axes[0, 0].legend(frameon=False, fontsize="small")
    return _to_uri(figure)


def read_evaluations(run: Path) -> dict:
    """Return the newest results of `evaluate`, the metrics in them, and the newest image of the nearest neighbors."""
    files = run_dir.list_evaluations(run)
    more, files = max(0, len(files) - MAX_EVALUATIONS), files[::-1][:MAX_EVALUATIONS]
    results = [result for file in files if "settings" in (result := run_dir.read_result(file.parent))]
    panels = filter(None, (_read_uri(file.parent / "neighbors.png") for file in files))
    names = [name for name in COLUMNS if any(name in result for result in results)]
    return {"results": results, "names": names, "panel": next(panels, None), "more": more}


def label_runs(runs: Sequence[Path], found: dict) -> list[str]:
    """Return a different name for each run: the overrides that differ, and the folder where they do not."""
    shown = [[f"{key}={config.get(key, '')}" for key in found["keys"][:MAX_KEYS]] for _, config, _ in found["rows"]]
    labels = [escape_controls(" ".join(texts)) for texts in shown]
    pairs = zip(labels, runs, strict=True)
    names = [label if labels.count(label) == 1 else f"{label} {run.name}".strip() for label, run in pairs]
    return [name if names.count(name) == 1 else f"{name} ({k + 1})" for k, name in enumerate(names)]


def find_differences(runs: Sequence[Path], metric: str | None = None) -> dict:
    """Return the config keys that differ between runs, the names in their results, and each name, config and result."""
    configs, results = [flatten_config(_read_config(run)) for run in runs], [run_dir.read_result(run) for run in runs]
    choices = [sweeps.read_job_overrides(run) for run in runs]
    typed = dict.fromkeys(key for of_run in choices for key in of_run)
    groups = [key for key in typed if any(f"{key}._target_" in config for config in configs)]
    for config, of_run in zip(configs, choices, strict=True):  # `weighting=snr` in place of all keys of the group
        config |= {key: of_run.get(key) or str(config.get(f"{key}._target_")).rpartition(".")[2] for key in groups}
    keys = dict.fromkeys(key for key in (*groups, *(key for config in configs for key in config)))
    keys = [key for key in keys if key in typed or key.partition(".")[0] not in groups]
    keys = [key for key in keys if len({str(config.get(key)) for config in configs}) > 1 and key != "run_dir"]
    for config in configs:  # classes without their modules
        config |= {key: str(config.get(key)).rpartition(".")[2] for key in keys if key.endswith("_target_")}
    names = dict.fromkeys([*([metric] if metric else []), *(key for result in results for key in result)])
    rows = [list(row) for row in zip([run.name for run in runs], configs, results, strict=True)]
    return {"keys": keys, "names": list(names), "rows": rows}


def _read_metrics(run: Path) -> list[dict[str, str]]:
    return read_metrics(run / "metrics.csv") if (run / "metrics.csv").is_file() else []


def _read_config(run: Path) -> dict:
    try:
        return run_dir.read_run_config(run)
    except UserError:
        return {}


def _to_uri(figure) -> str:
    return _encode_uri(encode_figure(figure), "png")


def _read_uri(file: Path) -> str | None:
    return _encode_uri(file.read_bytes(), file.suffix[1:]) if file.is_file() else None


def _encode_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
