"""`python -m diffusion_lit.report run=<folder>`: write one self-contained HTML page about one or more runs."""

import logging
from pathlib import Path

from omegaconf import DictConfig

from diffusion_lit.cli.launch import launch
from diffusion_lit.runs import output, run_dir, sweeps
from diffusion_lit.runs.diffusers_format import resolve_run
from diffusion_lit.system.errors import CheckpointError, ConfigError

log = logging.getLogger("diffusion_lit.report")
GENERATOR = '<meta name=generator content="diffusion_lit report">'  # of page.html


def main() -> None:
    """Run the command."""
    launch("report", report, lambda overrides, config_dir: resolve_run(overrides, "metrics.csv"), find_runs)


def find_runs(config: DictConfig) -> list[Path]:
    """Return the run folders of a page, those of a sweep best first.

    Raises:
        UserError: exit 2 unless exactly one of run, runs and sweep is set; exit 4 if there are
            no runs.
    """
    if sum(config[key] is not None for key in ("run", "runs", "sweep")) != 1:
        raise ConfigError("add one of run=<folder>, 'runs=[<folder>,<folder>]' and sweep=<folder>")
    if config.sweep is None:
        return [run_dir.require_run_dir(run) for run in config.runs or [config.run]]
    jobs = sweeps.list_jobs(Path(config.sweep).expanduser())
    runs = [job for job in jobs if run_dir.is_run_dir(job.folder)]
    if not runs:
        raise CheckpointError(f"sweep={config.sweep}: there are no runs in it")
    metric, metrics = config.by or sweeps.read_sweep_metric(jobs), sweeps.list_metrics(jobs)
    if config.by and config.by not in metrics:
        hint = f"Choose one of: {', '.join(metrics)}" if metrics else "No run has finished yet"
        raise ConfigError(f"by={metric}: no run of this sweep has this metric. {hint}")
    return [job.folder for job in sorted(runs, key=lambda job: sweeps.rank_value(job.value(metric), metric))]


def report(config: DictConfig) -> None:
    """Write the page of a run, of several runs or of a sweep."""
    from diffusion_lit.figures.page import render_page

    runs = find_runs(config)
    sweep = Path(config.sweep).expanduser() if config.sweep else None
    home = sweep or (runs[0] if len(runs) == 1 else Path())
    out = Path(config.out).expanduser() if config.out else home / "report.html"
    metric = config.by or (sweeps.read_sweep_metric(sweeps.list_jobs(sweep)) if sweep else None)
    text = render_page(runs, sweep, config.grids, config.paths, metric)
    output.write_page(out, text, GENERATOR)
    log.info("report     %s (%.1f MiB)", run_dir.display_path(out), out.stat().st_size / 2**20)


if __name__ == "__main__":
    main()
