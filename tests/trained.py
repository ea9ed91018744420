"""Training in this process, in seconds."""

from pathlib import Path

import pytest

from diffusion_lit.config.compose import compose_configs, resolve_data
from diffusion_lit.data.datamodule import ImageDataModule
from diffusion_lit.training.launch_run import fit
from tests.forks import VALIDATION_IMAGES
from tests.runs import TINY, trace

SHORT = [*TINY, "max_steps=4", "checkpoint_every=4", "val_every=0", "sample_every=0", "keep_checkpoints=1"]


def train(run: Path, *overrides: str) -> list[dict[str, str]]:
    """Train a run in this process, on fewer images of validation; return its metrics without the clock."""
    config, source = resolve_data(compose_configs("train", [*SHORT, *overrides])[0])
    run.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ImageDataModule.__init__.__kwdefaults__, "val_images", VALIDATION_IMAGES)
        fit(config, source, run, list(overrides))
    return trace(run)


def losses(run: Path, *overrides: str) -> list[float]:
    return [float(row["train/loss"]) for row in train(run, *overrides)]
