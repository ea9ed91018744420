"""What stands in examples/ works as its README says."""

import re
import shutil
from pathlib import Path

from diffusion_lit.runs.stored_config import read_model_config
from tests.runs import run, trace

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_parts_of_ones_own_train_and_sample_by_the_commands_of_the_page(tmp_path):
    here = Path(shutil.copytree(EXAMPLES / "own_parts", tmp_path / "own_parts"))
    lines = re.findall(r"python -m diffusion_lit\.(train|sample) (.*)", (here / "README.md").read_text())
    (verb, words), (other, more) = lines
    assert (verb, other) == ("train", "sample")
    quick = ["max_steps=60", "log_every=10", "val_every=0", "sample_every=0", "checkpoint_every=60", "run_dir=run"]
    run("train", *words.split(), *quick, cwd=here)
    config = read_model_config(here / "run")
    targets = {config[group]["_target_"] for group in ("data", "model", "weighting", "sampler")}
    assert targets == {f"own_parts.{name}" for name in ("Stripes", "Plain", "Middle", "LateDDIM")}
    losses = [float(row["train/loss"]) for row in trace(here / "run")]
    assert losses[-1] < 0.8 * losses[0]  # it learns
    sample = [*more.replace("run=outputs/images/<run>", "run=run").split(), "num_images=4", "out=out"]
    run("sample", *sample, cwd=here)
    assert len(list((here / "out").glob("0*.png"))) == 4
