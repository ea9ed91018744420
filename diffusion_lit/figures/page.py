"""One HTML page of one or several runs: everything is in the file, and it runs no script but its own few lines."""

import base64
import re
from collections.abc import Sequence
from html import escape
from io import BytesIO
from pathlib import Path

from diffusion_lit.config.schema import METRICS
from diffusion_lit.figures import curves
from diffusion_lit.figures.style import plots
from diffusion_lit.runs import run_dir
from diffusion_lit.runs.metrics_file import read_metrics
from diffusion_lit.runs.resume import flat
from diffusion_lit.system.console import progress_bar
from diffusion_lit.system.errors import UserError

COMPARED = ("loss", "val_loss", "val_error", "fd", "class_accuracy", "images_per_second")  # columns, run by run
COMPARED_RUNS = 10  # curves that can be told apart in one figure
EVALUATIONS = 20  # that are shown, the newest
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; color: #222;
  background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1.2rem; margin-top: 2.5rem } h3 { font-size: 1rem }
img { max-width: 100% } .pixels { image-rendering: pixelated; width: min(100%, 48rem); background: #eee }
table { border-collapse: collapse; font-size: 14px } td, th { padding: .2rem .8rem .2rem 0; text-align: left;
  border-bottom: 1px solid #ddd; vertical-align: top } .wide { overflow-x: auto }
code, pre { font: 13px/1.5 ui-monospace, monospace } pre { background: #f5f5f5; padding: .8rem; overflow-x: auto }
input[type=range] { width: min(100%, 48rem) } summary { cursor: pointer } .grey { color: #777 }
"""
SCRIPT = """
for (const slider of document.querySelectorAll("input[type=range]")) {
  const pictures = slider.parentElement.querySelectorAll("figure");
  const show = () => pictures.forEach((picture, k) => { picture.hidden = k != slider.value; });
  slider.addEventListener("input", show); show();
}
"""


def page(runs: Sequence[Path], sweep: Path | None, grids: int) -> str:
    """The page. A part of a run that is missing or damaged is left out, and the page says so."""
    title = sweep.resolve().name if sweep else " and ".join(run.resolve().name for run in runs[:3])
    parts = [f"<h1>{escape(title)}</h1>"]
    if sweep:
        parts.append(_of_sweep(sweep))
    if len(runs) > 1:
        parts += [_differences(runs), _compared(runs[:COMPARED_RUNS])]
    with progress_bar("runs", shown=len(runs) > 1) as bar:
        for run in bar.track(runs):
            folded = len(runs) > 1 and run != runs[0]
            parts.append(_folded(run, grids) if folded else _of_run(run, grids))
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    return f"<!doctype html>\n<html lang=en>{head}\n{chr(10).join(parts)}\n<script>{SCRIPT}</script></html>\n"


def _folded(run: Path, grids: int) -> str:
    return f"<details><summary>{escape(str(run_dir.shown(run)))}</summary>{_of_run(run, grids)}</details>"


def _of_run(run: Path, grids: int) -> str:
    result = run_dir.read_result(run)
    parts = [f"<h2>{escape(str(run_dir.shown(run)))}</h2>", _table(_summary(run, result))]
    parts += [_slider(run, grids), _curves(run), _evaluations(run), _settings(run)]
    return "\n".join(part for part in parts if part)


def _summary(run: Path, result: dict) -> list[tuple[str, str]]:
    """How it ended, its times and its numbers."""
    rows = [("status", result.get("status", "unfinished"))]
    rows += [(key, _number(value)) for key, value in result.items() if _is_number(value) and key != "exit_code"]
    if result.get("error"):
        rows.append(("error", str(result["error"])))
    measured = _rows(run)
    if measured:
        memory = [float(row["memory_gib"]) for row in measured if row.get("memory_gib")]
        rows += [("last step in metrics.csv", measured[-1]["step"])]
        rows += [("memory, at most", f"{max(memory):.2f} GiB")] if memory else []
    return rows


def _slider(run: Path, most: int) -> str:
    """Grids of samples over time, one shown at a time; where there is a film of the last one, that too."""
    files = sorted((run / "samples").glob("step-*.png"))
    if not files:
        return '<p class="grey">No samples.</p>'
    count = min(most, len(files))
    kept = [files[round(k * (len(files) - 1) / max(1, count - 1))] for k in range(count - 1)] + [files[-1]]
    figures = []
    for file in kept:
        step = int(re.sub(r"\D", "", file.stem))
        image = f'<img class=pixels src="{_uri(file.read_bytes())}" alt="samples of step {step}">'
        figures.append(f"<figure hidden><figcaption>step {step:,}</figcaption>{image}</figure>")
    slider = f"<input type=range aria-label=step min=0 max={len(kept) - 1} value={len(kept) - 1}>"
    film = files[-1].with_suffix(".gif")
    shown = ""
    if film.exists():
        image = f'<img class=pixels src="{_uri(film.read_bytes(), "gif")}" alt="samples while they are denoised">'
        shown = f"<details><summary>the last ones on their way from noise</summary>{image}</details>"
    return f"<h3>Samples</h3><div>{slider}{''.join(figures)}</div>{shown}"


def _curves(run: Path) -> str:
    rows = _rows(run)
    if not rows:
        return '<p class="grey">No metrics.csv.</p>'
    figure = curves.figure_of(rows, "")
    columns = [name for names in METRICS.values() for name in names] + ["grad_norm", "images_per_second", "memory_gib"]
    more = {name: curves.series(rows, name) for name in columns}
    more = {name: found for name, found in more.items() if found[0]}
    parts = [f"<h3>Curves</h3>{_picture(figure, 'curves of training')}"]
    if more:
        figure, axes = plots(-(-len(more) // 3), 3, "")
        for ax, (name, (steps, values)) in zip(axes.flatten(), more.items(), strict=False):
            ax.plot(steps, values, marker="o" if len(steps) < 20 else "", markersize=3)
            ax.set(
                title=name.replace("_", " "),
                xlabel="optimizer step",
                ylim=(min(0, *values), 1.1 * max(0, *values) or None),
            )
        for ax in axes.flatten()[len(more) :]:
            ax.remove()
        parts.append(_picture(figure, "metrics, gradient and times"))
    return "".join(parts)


def _evaluations(run: Path) -> str:
    """The newest results of `evaluate`, and what the newest of them found nearest to a copy."""
    files = sorted(run.glob("evaluations/**/result.json"), key=lambda file: file.stat().st_mtime_ns)[-EVALUATIONS:]
    results = [run_dir.read_result(file.parent) for file in reversed(files)]
    results = [result for result in results if "settings" in result]
    if not results:
        return ""
    columns = [name for names in METRICS.values() for name in names if any(name in result for result in results)]
    lines = []
    for result in results:
        settings = result["settings"]
        asked = f"{settings['checkpoint']}, {settings['weights']}, {settings['sampler'].get('name')}"
        asked += f", NFE {result['nfe']:g}" + _guidance(settings)
        against = f"{settings['features']['name']}, {settings['reference']['split']}"
        cells = [asked, f"{result['num_images']:,}", against, *[_with_interval(result, name) for name in columns]]
        lines.append(cells)
    table = _table(lines, ["settings", "images", "features, reference", *columns])
    panel = next((file.parent / "neighbours.png" for file in reversed(files)
                  if (file.parent / "neighbours.png").exists()), None)  # fmt: skip
    picture = f'<img class=pixels src="{_uri(panel.read_bytes())}" alt="nearest training images">' if panel else ""
    return f"<h3>Measured</h3>{table}{picture}"


def _guidance(settings: dict) -> str:
    scale = settings.get("guidance_scale")
    return "" if scale in (None, 1) else f", guidance {scale:g}"


def _settings(run: Path) -> str:
    parts = []
    for name, told in (("command.txt", "Command"), ("config.yaml", "Settings"), ("versions.txt", "Versions")):
        if (run / name).is_file():
            text = escape((run / name).read_text(errors="replace"))
            open_ = " open" if name == "command.txt" else ""
            parts.append(f"<details{open_}><summary>{told}</summary><pre>{text}</pre></details>")
    return "".join(parts)


# ------------------------------------------------------------------------------------------ several runs


def _of_sweep(sweep: Path) -> str:
    picture = sweep / "results.png"
    if not picture.exists():
        return ""
    return f'<p><img src="{_uri(picture.read_bytes())}" alt="the metric by what was swept"></p>'


def _differences(runs: Sequence[Path]) -> str:
    """A row a run: the settings that are not the same in all of them, and the numbers of their results."""
    configs, results = [flat(_config(run)) for run in runs], [run_dir.read_result(run) for run in runs]
    keys = dict.fromkeys(key for config in configs for key in config)
    other = [key for key in keys if len({str(config.get(key)) for config in configs}) > 1 and key != "run_dir"]
    found = dict.fromkeys(key for result in results for key, value in result.items() if _is_number(value))
    numbers = [key for key in found if key != "exit_code"]
    lines = []
    for run, config, result in zip(runs, configs, results, strict=True):
        values = [_number(result[key]) if _is_number(result.get(key)) else "" for key in numbers]
        lines.append([run.name, *[str(config.get(key, "")) for key in other], result.get("status", ""), *values])
    return f"<h2>What differs</h2>{_table(lines, ['run', *other, 'status', *numbers])}"


def _compared(runs: Sequence[Path]) -> str:
    """The curves of the runs, over each other."""
    rows = {run: _rows(run) for run in runs}
    there = [name for name in COMPARED if any(curves.series(found, name)[0] for found in rows.values())]
    if not there:
        return ""
    figure, axes = plots(-(-len(there) // 2), 2, "")
    for ax, name in zip(axes.flatten(), there, strict=False):
        for run, found in rows.items():
            steps, values = curves.series(found, name)
            ax.plot(steps, values, label=run.name, marker="o" if len(steps) < 20 else "", markersize=3)
        ax.set(title=name.replace("_", " "), xlabel="optimizer step")
    for ax in axes.flatten()[len(there) :]:
        ax.remove()
    axes[0, 0].legend(frameon=False, fontsize="small")
    told = "loss and val_loss compare runs of one weighting and prediction type, val_error compares them all."
    return f"{_picture(figure, 'curves of the runs')}<p class=grey>{told}</p>"


# ------------------------------------------------------------------------------------------ pieces


def _rows(run: Path) -> list[dict[str, str]]:
    return read_metrics(run / "metrics.csv") if (run / "metrics.csv").is_file() else []


def _config(run: Path) -> dict:
    try:
        return run_dir.read_run_config(run)
    except UserError:
        return {}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _with_interval(result: dict, name: str) -> str:
    if not _is_number(result.get(name)):
        return ""
    low, high = result.get(f"{name}_low"), result.get(f"{name}_high")
    return _number(result[name]) + ("" if low is None else f" ({_number(low)} to {_number(high)})")


def _table(rows: Sequence[Sequence[object]], heads: Sequence[str] = ()) -> str:
    head = f"<tr>{''.join(f'<th>{escape(name)}</th>' for name in heads)}</tr>" if heads else ""
    body = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    return f"<div class=wide><table>{head}{body}</table></div>"


def _picture(figure, told: str) -> str:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=figure.dpi)
    return f'<img src="{_uri(buffer.getvalue())}" alt="{escape(told)}">'


def _uri(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
