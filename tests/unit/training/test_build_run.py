"""The callbacks of a run act in a fixed order."""

from typing import get_type_hints

from diffusion_lit.training.build_run import RunCallbacks, make_callbacks
from diffusion_lit.training.loggers.run_logger import make_logger

FILES_ONLY = {"_target_": "diffusion_lit.training.loggers.backends.FilesOnly"}


def test_the_callbacks_keep_their_order(tmp_path):
    """A step is checked, measured and logged before it is saved; previews and signals come after."""
    config = {"metrics_every": 0, "metrics": []}
    callbacks = make_callbacks(config, tmp_path, None, make_logger(FILES_ONLY))
    assert [type(callback).__name__ for callback in callbacks] == [
        "NonFiniteGuard", "StepValidation", "SampleMetrics", "EmaSnapshots", "MetricsLog", "RunCheckpoints",
        "SamplePreviews", "GracefulStop",
    ]  # fmt: skip
    assert [type(callback) for callback in callbacks] == list(get_type_hints(RunCallbacks).values())
    assert len({id(callback.milestones) for callback in callbacks}) == len({id(c.clock) for c in callbacks}) == 1
