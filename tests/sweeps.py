"""Sweeps small enough for seconds, and what they leave."""

import csv
from pathlib import Path

from PIL import Image

from tests.runs import TINY

QUICK = [*TINY, "max_steps=3", "checkpoint_every=3", "val_every=0", "sample_every=0", "metric=val/loss"]
DIVERGING = ["trainer.gradient_clip_val=null", "max_skipped_steps=0", "optimizer.lr=1e30,1e-3"]


def rows_of(sweep: Path) -> list[dict[str, str]]:
    with open(sweep / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


def is_figure_drawn(sweep: Path) -> bool:
    with Image.open(sweep / "results.png") as picture:
        return min(picture.size) > 200 and len(picture.convert("RGB").getcolors(1 << 24)) > 20


OPTUNA = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=4", "hydra.sweeper.sampler.seed=0"]
