"""`python -m diffusion_lit.evaluate run=<folder>`: how good the images of a trained run are, and by which settings."""

import logging
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from diffusion_lit.cli import summary
from diffusion_lit.cli.launch import launch
from diffusion_lit.config.schema import METRIC_COLUMNS
from diffusion_lit.distributed.shard_worker import choose_device
from diffusion_lit.runs import run_dir, stored_config, sweeps
from diffusion_lit.runs.evaluate_request import check_evaluation, expand_runs, make_evaluation_dir
from diffusion_lit.system.errors import UserError

log = logging.getLogger("diffusion_lit.evaluate")


def main() -> None:
    launch("evaluate", evaluate, prepare=expand_runs, check=check_evaluation, summarise=summarize_sweep)


def evaluate(config: DictConfig) -> float | None:
    """Measure one run and return its value of `metric`, for a sweep."""
    from diffusion_lit.evaluation.results import format_evaluation
    from diffusion_lit.runs.evaluate_run import load_evaluation_task, measure, measure_in_shards
    from diffusion_lit.runs.load import load_requested_model

    out = make_evaluation_dir(config)
    if config.shards:
        config = OmegaConf.merge(config, {"device": choose_device(config.device)})
    task = load_evaluation_task(config, load_requested_model(config, log.warning))

    def write_result(result: dict, evidence) -> None:
        write_evaluation(out, result, evidence, config)

    if not config.shards:
        return sweeps.sweep_objective(measure(task, write_result), config.metric)
    result, here = measure_in_shards(task, out, write_result)
    if not here:
        log.info("\n".join(format_evaluation(result, result.get("per_class", []))))
        log.info("measured   %s, by another process", run_dir.display_path(out / "result.json"))
        if config.set_default:
            set_default(config, result, f"set by {out.name}")
    return sweeps.sweep_objective(result, config.metric)


def write_evaluation(out: Path, result: dict, evidence, config: DictConfig) -> None:
    """Write the nearest neighbors and result.json, print the numbers, and keep what belongs to the run."""
    from diffusion_lit.evaluation.results import draw_memorization_panel, format_evaluation
    from diffusion_lit.imaging.grids import add_checkerboard

    if "memorization" in config.metrics:
        add_checkerboard(draw_memorization_panel(evidence)).save(out / "neighbors.png")
        log.info("neighbors  %s", run_dir.display_path(out / "neighbors.png"))
    run_dir.write_result(out, result)
    alone = not (out / "command.txt").exists()  # a job of a sweep is not: its best settings are found at the end
    log.info("\n".join(format_evaluation(result, result.get("per_class", []) if alone else [])))
    log.info("written    %s", run_dir.display_path(out / "result.json"))
    if alone:
        log_to_wandb(Path(config.run).expanduser(), result)
        if config.set_default:
            set_default(config, result, f"set by {out.name}")


def set_default(config: DictConfig, result: dict, why: str) -> None:
    """Keep the settings of a result as those that the run is sampled with from now on."""
    path = stored_config.write_sampling_config(Path(config.run).expanduser(), result["settings"], why)
    summary.print_lines(f"default    {run_dir.display_path(path)}: {why}")


def log_to_wandb(run: Path, result: dict) -> None:
    """Add the numbers to the summary in W&B if the run has one; offline `wandb sync` merges the two folders."""
    config = stored_config.read_model_config(run)
    if not (run / "wandb" / "run_id").exists():
        return
    from diffusion_lit.training.loggers.run_logger import make_logger

    try:
        lock = run_dir.RunLock(run)
    except (UserError, OSError) as error:
        log.warning("W&B        is not told: %s", error)
        return
    logger = make_logger(config["logger"])
    logger.start(run, config, 0)
    logger.log_result({f"evaluation/{key}": value for key, value in result.items() if isinstance(value, int | float)})
    logger.finish(0)
    lock.release()


def summarize_sweep(sweep: Path, config: DictConfig) -> None:
    """Write results.csv of a sweep and print its table; of one run draw pareto.png, of several means over seeds."""
    from diffusion_lit.figures import pareto

    jobs = sweeps.write_sweep_results(sweep)
    keys, columns = sweeps.find_swept_keys(jobs), [column for name in config.metrics for column in METRIC_COLUMNS[name]]
    measured = [name for name in dict.fromkeys([config.metric, *columns]) if name in sweeps.list_metrics(jobs)]
    if not measured:
        summary.print_lines(*summary.format_failures(jobs, keys))
        return
    metric, *others = measured
    if len({job.result.get("run") for job in jobs} - {None}) > 1:
        summary.summarize_sweep(sweep, metric, others)
        return
    summary.print_lines(*summary.format_failures(jobs, keys), pareto.format_pareto(jobs, keys, metric, others))
    summary.print_lines(
        f"picture    {run_dir.display_path(pareto.draw_pareto(jobs, keys, metric, sweep / 'pareto.png'))}"
    )
    summary.print_lines(f"rows       {run_dir.display_path(sweep / 'results.csv')}")
    if config.set_default:
        best = sweeps.group_jobs(jobs, [key for key in keys if key != "seed"], metric)[0]
        result = run_dir.read_result(best.jobs[0].folder)
        set_default(config, result, f"best {metric} ({best.mean:.4g}) of {sweep.name}")


if __name__ == "__main__":
    main()
