"""Summary of a sweep of `evaluate`, and what one evaluation passes on: to W&B, and to a figure beside its teacher."""

import logging
from collections.abc import Sequence
from pathlib import Path

from diffusion_lit.cli import summary
from diffusion_lit.runs import output, run_dir, run_lock, stored_config, sweeps
from diffusion_lit.system.errors import UserError

log = logging.getLogger("diffusion_lit.evaluate")


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
    from diffusion_lit.figures.evaluations import draw_pareto, format_pareto

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
    figure = draw_pareto(jobs, keys, metric, sweep / "pareto.png")
    summary.print_lines(format_pareto(jobs, keys, metric, others))
    summary.print_lines(f"figure     {run_dir.display_path(figure)}")
    summary.print_lines(f"table      {run_dir.display_path(sweep / 'results.csv')}")
    print_comparison(sweep, jobs, keys, metric)
    best = sweeps.group_jobs(jobs, [key for key in keys if key != "seed"], metric)[0]
    result = run_dir.read_result(best.jobs[0].folder)
    return result, f"best {metric} ({best.mean:.4g}) of {sweep.name}"


def print_comparison(sweep: Path, jobs: list[sweeps.Job], keys: list[str], metric: str) -> None:
    """Print and draw the paired differences from the first settings, if the evaluations have any."""
    from diffusion_lit.cli import paired_comparison

    keys = [key for key in keys if key != "seed"]
    groups = [group for group in sweeps.group_jobs(jobs, keys, metric) if group.numbers]
    baseline, rows = paired_comparison.compare_groups(groups, keys, metric) if len(groups) > 1 else ("", [])
    if rows:
        title, heading = f"against the first settings, {baseline}", f"difference of {metric}, 95 %"
        table = [(name, metric, found) for name, found in rows]
        summary.print_lines("", paired_comparison.format_comparison(title, heading, table))
        figure = paired_comparison.write_comparison(baseline, rows, metric, sweep)
        summary.print_lines(f"comparison {run_dir.display_path(figure)}")


def print_difference(out: Path, baseline: Path, metric: str) -> None:
    """Print and draw the paired differences of an evaluation from a baseline; warn if they are not paired."""
    from diffusion_lit.cli import paired_comparison

    found, where = paired_comparison.compare_to_baseline(out, baseline), run_dir.display_path(baseline)
    if not found:
        log.warning("baseline   %s has other seeds, classes, features or real images: not compared", where)
        return
    rows = [(name, name, difference) for name, difference in found.items()]
    summary.print_lines("", paired_comparison.format_comparison(f"against {where}", "difference, 95 %", rows))
    metric = metric if metric in found else next(iter(found))
    name = run_dir.display_path(output.final_folder(out))
    paired_comparison.write_comparison(str(where), [(str(name), found[metric])], metric, out)
    summary.print_lines(f"comparison {name / 'comparison.png'}")


def log_to_wandb(run: Path, result: dict) -> None:
    """Add the metrics to the W&B summary of the run, if it is on a server."""
    if not any((run / "wandb").glob("run-*")):  # offline each evaluation would make another folder to upload
        return
    from diffusion_lit.training.loggers.run_logger import make_logger

    config = stored_config.read_model_config(run)
    try:
        lock = run_lock.RunLock(run)
    except (UserError, OSError) as error:
        log.warning("could not log to W&B: %s", error)
        return
    logger = make_logger(config["logger"])
    logger.start(run, config, 0)
    logger.log_result({f"evaluation/{key}": value for key, value in result.items() if isinstance(value, int | float)})
    logger.finish(0)
    lock.release()


def draw_beside_teacher(out: Path, run: Path, result: dict, metric: str) -> None:
    """Draw a student's quality over cost beside its teacher's, of all their evaluations that compare, to pareto.png.

    Args:
        out: folder of the evaluation.
        run: the run; nothing is drawn unless it is a student whose teacher has evaluations.
        result: of the evaluation.
        metric: drawn where there is no FD.
    """
    from diffusion_lit.figures.evaluations import draw_pareto, format_pareto

    distill = stored_config.read_model_config(run).get("distill")
    metric = "fd" if "fd" in result else metric
    if not distill:
        return
    jobs = [sweeps.Job(out, {"model": "student", "sampler": "ddim"}, dict(result))]
    for model, folder in (("student", run), ("teacher", Path(distill["teacher"]))):
        for file in run_dir.list_evaluations(folder):
            other = run_dir.read_result(file.parent)
            keys = ("features", "reference")
            same = all(other.get("settings", {}).get(key) == result["settings"][key] for key in keys)
            if same and other.get("num_images") == result["num_images"]:
                sampler = other["settings"]["sampler"]["name"]
                jobs.append(sweeps.Job(file.parent, {"model": model, "sampler": sampler}, other))
    if any(job.overrides["model"] == "teacher" and job.value(metric) is not None for job in jobs):
        draw_pareto(jobs, ["model", "sampler"], metric, out / "pareto.png")
        for job in jobs:
            job.result["seconds_per_image"] = job.result["seconds"] / job.result["num_images"]
        summary.print_lines(format_pareto(jobs, ["model", "sampler"], metric, ["recall", "seconds_per_image"]))
        summary.print_lines(f"figure     {run_dir.display_path(output.final_folder(out)) / 'pareto.png'}")
