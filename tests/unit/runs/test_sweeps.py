"""The metric of a sweep is one that is measured and that can rank its jobs."""

from diffusion_lit.config.compose import compose_configs
from diffusion_lit.runs.sweeps import choose_metric, explain_misleading_metric


def metric_of(*overrides: str) -> str:
    (config,) = compose_configs("train", list(overrides))
    return choose_metric(config)


def test_a_sweep_compares_samples_where_they_are_measured():
    assert metric_of("experiment=digits") == "class_accuracy"
    assert metric_of("experiment=digits", "metrics_every=600") == "kid"
    assert metric_of("experiment=digits", "metrics_every=600", "metrics=[fd]") == "class_accuracy"
    assert metric_of("experiment=none", "data=synthetic") == "val/error"
    assert metric_of("experiment=digits", "metrics_every=600", "metric=val/error") == "val/error"


def test_a_validation_loss_is_not_trusted_between_recipes():
    assert explain_misleading_metric("val/error", ["optimizer.lr", "seed", "model.block_out_channels"]) is None
    assert explain_misleading_metric("kid", ["weighting"]) is None
    assert explain_misleading_metric(None, ["weighting"]) is None  # a command without a metric
    for metric in ("val/error", "val/loss", "val/bits_per_dim"):
        reason = explain_misleading_metric(metric, ["seed", "weighting", "diffusion.prediction_type"])
        assert f"metric={metric}: ranks runs of one recipe only, and diffusion.prediction_type, weighting" in reason
        assert "Compare them by metric=kid, with metrics_every=" in reason
