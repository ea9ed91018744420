"""The metric of a sweep: it must be measured, and must be able to rank the runs."""

import logging
from collections.abc import Iterable, Sequence

from omegaconf import DictConfig

from diffusion_lit.config.metric_columns import METRIC_COLUMNS
from diffusion_lit.config.overrides import read_override
from diffusion_lit.runs import sweeps
from diffusion_lit.system.errors import ConfigError

log = logging.getLogger("diffusion_lit.sweep")


def check_metric(
    config: DictConfig, overrides: Sequence[str], keys: Iterable[str], direction: object = None
) -> str | None:
    """Return the metric that a sweep compares; None for a command without one. Warn if it cannot rank the jobs.

    Args:
        config: of the first job.
        overrides: of the command line.
        keys: that are swept.
        direction: of a sweeper that optimizes the metric.

    Raises:
        UserError: exit 2 for a metric that no job measures, or a sweeper that optimizes towards its worst value.
    """
    metric = sweeps.choose_metric(config) if "metric" in config else None
    if direction is not None:
        _check_direction(metric, direction)
    _check_measured(config, list(overrides))
    if reason := sweeps.explain_misleading_metric(metric, keys):
        log.warning("%s", reason)
    return metric


def _check_measured(config: DictConfig, overrides: list[str]) -> None:
    """Raise UserError (exit 2) if a sweep of `train` compares a metric that was typed and that no job measures."""
    name = read_override("metric", overrides)
    metric = next((metric for metric, columns in METRIC_COLUMNS.items() if name in columns), None)
    if not metric or "metrics_every" not in config or (config.metrics_every and metric in config.metrics):
        return
    if not (name == "class_accuracy" and config.data.get("classifier_images")):
        raise ConfigError(f"metric={name}: not measured. Add metrics_every={config.max_steps} 'metrics=[{metric}]'")


def _check_direction(metric: str | None, direction: object) -> None:
    """Raise UserError (exit 2) if a sweeper optimizes towards the worst value, or nothing."""
    if metric is None:
        raise ConfigError("hydra/sweeper: this command has no metric to optimize")
    best = "maximize" if metric in sweeps.HIGHER_IS_BETTER else "minimize"
    if getattr(direction, "name", direction) != best:
        better = "higher" if best == "maximize" else "lower"
        raise ConfigError(f"metric={metric}: {better} is better. Add hydra.sweeper.direction={best}")
