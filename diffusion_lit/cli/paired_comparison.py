"""Print and draw how evaluations differ: the settings of a sweep from the first ones, or one from a `baseline`.

The first settings are known before anything is measured. The best ones are not:
a choice among many after the fact looks better than it is, and so would every
difference from it.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from diffusion_lit.config.metric_columns import COLUMNS
from diffusion_lit.evaluation.comparison import INDISTINGUISHABLE, Difference, compare, load_evaluation
from diffusion_lit.runs import sweeps
from diffusion_lit.system.console import create_table

Differences = list[tuple[str, Difference]]  # from the first settings, by the label of the others


def compare_groups(groups: Sequence[sweeps.JobGroup], keys: Sequence[str], metric: str) -> tuple[str, Differences]:
    """Return the label of the settings given first, and each other group that is paired with them."""

    def label(group: sweeps.JobGroup) -> str:
        return " ".join(f"{key}={sweeps.shorten_number(v)}" for key, v in zip(keys, group.values, strict=True))

    def evaluations(group: sweeps.JobGroup) -> list:
        found = [load_evaluation(job.folder, metric) for job in group.jobs]
        return [one for one in found if one is not None]

    baseline = min(groups, key=lambda group: group.first)
    others = [group for group in groups if group is not baseline]
    rows = [(label(group), compare(evaluations(group), evaluations(baseline))) for group in others]
    return label(baseline), [(name, difference) for name, difference in rows if difference]


def compare_to_baseline(out: Path, baseline: Path) -> dict[str, Difference]:
    """Return by metric how an evaluation differs from another one; {} if they are not paired."""
    found = {}
    for metric in COLUMNS:
        ours, theirs = load_evaluation(out, metric), load_evaluation(baseline, metric)
        if ours and theirs and (difference := compare([ours], [theirs])):
            found[metric] = difference
    return found


def format_comparison(title: str, heading: str, rows: Sequence[tuple[str, str, Difference]]):
    """Return a rich table of differences.

    Args:
        title: with what is compared.
        heading: of the column of differences.
        rows: name, metric and difference of each.
    """
    table = create_table([title], [heading, "± sampling", "± training", "± reference"])
    for name, metric, found in rows:
        column = COLUMNS[metric]
        verdict = found.verdict(column.higher_is_better)
        if verdict == INDISTINGUISHABLE:
            verdict += f" at {found.images:,} images"
            if found.training is None and found.images_needed:
                verdict += f", perhaps at {float(f'{found.images_needed:.2g}'):,.0f}"
        low, high = (f"{value:+{column.format}}" for value in found.estimate[1:])
        errors = [found.sampling, found.training, found.reference]
        cells = ["" if error is None else f"{error:.2g}" for error in errors]
        table.add_row(name, f"{found.estimate.value:+{column.format}} [{low}, {high}]", *cells, verdict)
    return table


def write_comparison(baseline: str, rows: Differences, metric: str, folder: Path) -> Path:
    """Write comparison.json and comparison.png, and return the path of the figure."""
    from diffusion_lit.figures.evaluations import draw_differences

    content = {
        "metric": metric,
        "baseline": baseline,
        "others": [{"settings": name} | asdict(found) | {"estimate": list(found.estimate)} for name, found in rows],
    }
    (folder / "comparison.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    points = [(name, tuple(found.estimate)) for name, found in rows]
    return draw_differences(baseline, points, metric, folder / "comparison.png")
