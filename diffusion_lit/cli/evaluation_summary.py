"""Summary of a sweep of `evaluate`, over the settings of one run or over several runs."""

from collections.abc import Sequence
from pathlib import Path

from diffusion_lit.cli import summary
from diffusion_lit.runs import run_dir, sweeps


def summarize_evaluations(sweep: Path, names: Sequence[str]) -> tuple[dict, str] | None:
    """Write results.csv and print a table of a sweep of `evaluate`.

    For several runs the table has means over seeds. For one run it has the settings
    with their Pareto front of quality and cost, which is drawn to pareto.png.

    Args:
        sweep: folder of the sweep.
        names: metrics of the table. The first one that was computed decides which
            is best.

    Returns:
        result.json of the best settings of one run, and the reason; None for
        several runs or without results.
    """
    from diffusion_lit.figures import pareto

    jobs = sweeps.write_sweep_results(sweep)
    keys, measured = sweeps.find_swept_keys(jobs), sweeps.list_metrics(jobs)
    metric, *others = [name for name in dict.fromkeys(names) if name in measured] or [None]
    if metric and len({job.result.get("run") for job in jobs} - {None}) > 1:
        summary.summarize_sweep(sweep, metric, others)
        print_comparison(sweep, jobs, keys, metric)
        return None
    summary.print_lines(*summary.format_failures(jobs, keys))
    if not metric:
        return None
    figure = pareto.draw_pareto(jobs, keys, metric, sweep / "pareto.png")
    summary.print_lines(pareto.format_pareto(jobs, keys, metric, others))
    summary.print_lines(f"figure     {run_dir.display_path(figure)}")
    summary.print_lines(f"table      {run_dir.display_path(sweep / 'results.csv')}")
    print_comparison(sweep, jobs, keys, metric)
    best = sweeps.group_jobs(jobs, [key for key in keys if key != "seed"], metric)[0]
    result = run_dir.read_result(best.jobs[0].folder)
    return result, f"best {metric} ({best.mean:.4g}) of {sweep.name}"


def print_comparison(sweep: Path, jobs: list[sweeps.Job], keys: list[str], metric: str) -> None:
    """Print and draw the paired differences from the best settings, if the evaluations have any."""
    from diffusion_lit.cli import paired_comparison

    keys = [key for key in keys if key != "seed"]
    groups = [group for group in sweeps.group_jobs(jobs, keys, metric) if group.numbers]
    best, rows = paired_comparison.compare_groups(groups, keys, metric) if len(groups) > 1 else ("", [])
    if rows:
        summary.print_lines("", paired_comparison.format_comparison(best, rows, metric))
        figure = paired_comparison.write_comparison(best, rows, metric, sweep)
        summary.print_lines(f"comparison {run_dir.display_path(figure)}")
