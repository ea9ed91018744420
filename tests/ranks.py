"""Runs of several processes and what must be the same in them."""

from pathlib import Path

import pytest

from tests.runs import TINY, trace

SHORT = [*TINY, "max_steps=8", "checkpoint_every=4", "val_every=4", "sample_every=4", "data.flip=0.5"]
DDP = ["strategy=ddp", "strategy.devices=2"]
WANDB = ["logger=wandb", "logger.mode=offline"]


def assert_same_training(one: Path, other: Path) -> None:
    """Losses, trained and held out, within 1e-5; the same steps and rates."""
    rows, others = trace(one), trace(other)
    assert len(rows) == len(others) > 3
    for a, b in zip(rows, others, strict=True):
        assert (a["step"], a["train/lr"]) == (b["step"], b["train/lr"])
        for key in ("train/loss", "val/loss", "val/loss_raw"):
            assert bool(a[key]) == bool(b[key])
            if a[key]:
                assert float(a[key]) == pytest.approx(float(b[key]), abs=1e-5)
