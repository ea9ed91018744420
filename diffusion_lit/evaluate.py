"""`python -m diffusion_lit.evaluate run=<folder>`: measure the images of a trained run, or compare its settings."""

import logging
from functools import partial
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from diffusion_lit.cli import summary
from diffusion_lit.cli.evaluation_summary import (
    draw_beside_teacher,
    log_to_wandb,
    print_difference,
    summarize_evaluations,
)
from diffusion_lit.cli.launch import launch
from diffusion_lit.config.metric_columns import METRIC_COLUMNS
from diffusion_lit.distributed.shard_device import choose_device
from diffusion_lit.runs import output, run_dir, stored_config, sweeps
from diffusion_lit.runs.evaluate_request import check_evaluation, open_evaluation_folder, prepare_evaluate_overrides

log = logging.getLogger("diffusion_lit.evaluate")


def main() -> None:
    """Run the command."""
    launch("evaluate", evaluate, prepare_evaluate_overrides, check_evaluation, print_summary)


def evaluate(config: DictConfig) -> float | None:
    """Evaluate one run and return its value of `metric`, for a sweep."""
    from diffusion_lit.evaluation.results import format_evaluation
    from diffusion_lit.runs.evaluate_run import load_evaluation_task, measure, measure_in_shards
    from diffusion_lit.runs.load import load_requested_model

    with open_evaluation_folder(config) as out:
        if config.shards:
            config = OmegaConf.merge(config, {"device": choose_device(config.device)})
        task = load_evaluation_task(config, load_requested_model(config, log.warning))
        write = partial(write_evaluation, out, config)
        if not config.shards:
            return sweeps.compute_objective(measure(task, write), config.metric)
        result, has_written = measure_in_shards(task, out, write)
    if not has_written:
        log.info("\n".join(format_evaluation(result, result.get("per_class", []))))
        log.info("measured   %s, by another process", run_dir.display_path(out / "result.json"))
        set_default(config, result, f"set by {out.name}")
    return sweeps.compute_objective(result, config.metric)


def write_evaluation(out: Path, config: DictConfig, result: dict, comparison) -> None:
    """Write neighbors.png and result.json, log the metrics, and pass them on to the run."""
    from diffusion_lit.evaluation.comparison import save_measurements
    from diffusion_lit.evaluation.results import draw_memorization_panel, format_evaluation

    final = run_dir.display_path(output.final_folder(out))
    if "memorization" in config.metrics and not config.reference_statistics:
        draw_memorization_panel(comparison).save(out / "neighbors.png")
        log.info("neighbors  %s", final / "neighbors.png")
    run_dir.write_result(out, result)
    save_measurements(out, comparison, result)
    is_job = (out / "command.txt").exists()  # of a sweep, whose best settings are known at its end
    log.info("\n".join(format_evaluation(result, [] if is_job else result.get("per_class", []))))
    log.info("written    %s", final / "result.json")
    if config.baseline:
        print_difference(out, Path(config.baseline).expanduser(), config.metric)
    if not is_job:
        log_to_wandb(Path(config.run).expanduser(), result)
        draw_beside_teacher(out, Path(config.run).expanduser(), result, config.metric)
        set_default(config, result, f"set by {final.name}")


def set_default(config: DictConfig, result: dict, reason: str) -> None:
    """With `set_default`, write the settings of a result to sampling.yaml of the run."""
    if config.set_default:
        path = stored_config.write_sampling_config(Path(config.run).expanduser(), result["settings"], reason)
        summary.print_lines(f"default    {run_dir.display_path(path)}: {reason}")


def print_summary(sweep: Path, config: DictConfig) -> None:
    """Print the table of a sweep. With `set_default` the run keeps its best settings."""
    names = [config.metric, *[column for name in config.metrics for column in METRIC_COLUMNS[name]]]
    if best := summarize_evaluations(sweep, names):
        set_default(config, *best)


if __name__ == "__main__":
    main()
