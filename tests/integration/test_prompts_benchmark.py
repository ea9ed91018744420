"""`python -m benchmarks prompts` measures only runs that were trained without the images of held-out pairs."""

from argparse import Namespace
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from benchmarks import prompts
from benchmarks.measure import MissingRequirement
from diffusion_lit.config.compose import compose_configs, resolve_data
from diffusion_lit.runs.load import TrainedModel
from diffusion_lit.training.launch_run import fit
from tests.structure import ROOT

COLORS = {"red": (220, 30, 30), "green": (30, 160, 30), "blue": (30, 30, 220), "purple": (150, 30, 190)}
RUN = [
    "experiment=tiles_prompt", "logger=none", "val_every=0", "sample_every=0", "checkpoint_every=1", "max_steps=1",
    "model.width=16", "model.depth=1", "model.heads=2", "global_batch_size=4", "data.val_fraction=0",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Potions of four colors, of which green and purple are held out; one image also has another name."""
    folder = tmp_path_factory.mktemp("tiles")
    for k in range(24):
        pixels = np.zeros((16, 16, 4), np.uint8)
        pixels[2:14, 2:14] = (*[*COLORS.values()][k % 4], 255)
        pixels[8, 8, :3] = k
        Image.fromarray(pixels).save(folder / f"potion_{k}.png")
    (folder / "thing_1.png").write_bytes((folder / "potion_1.png").read_bytes())
    return folder


def train(run, *overrides):
    words = [*RUN, *overrides]
    run.mkdir()
    fit(*resolve_data(compose_configs("train", words)[0]), run, words)


def measure(folder, out, run=None):
    prompts.main(Namespace(data=[str(folder)], out=out, run=run))


def test_a_run_on_held_out_images_is_refused_in_words(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(prompts, "train_classifier", lambda tiles: (None, 0.0, len(tiles)))
    accuracy = "right on 90% of real tiles"  # is compared next
    with pytest.raises(MissingRequirement, match=accuracy):
        measure(folder, tmp_path)
    excluded = (tmp_path / "held_out.txt").read_text(encoding="utf-8").split()
    assert excluded == sorted(f"potion_{k}.png" for k in range(24) if k % 4 in (1, 3))
    (tmp_path / "some.txt").write_text("\n".join(excluded[2:]), encoding="utf-8")
    for name, fault in (
        ("none", "was trained on 11 of its images: potion_"),
        ("some", "was trained on 1 of its images: potion_11"),
        ("held_out", accuracy),
    ):
        more = [f"data.exclude={tmp_path / name}.txt"] if name != "none" else []
        train(tmp_path / name, f"data.root={folder}", *more)
        with pytest.raises(MissingRequirement, match=fault):
            measure(folder, tmp_path, tmp_path / name)


def test_an_exported_model_says_it_by_its_command(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(prompts, "train_classifier", lambda tiles: (None, 0.0, len(tiles)))
    with pytest.raises(MissingRequirement, match="right on 90% of real tiles"):
        measure(folder, tmp_path, ROOT / "models" / "tiles")
    model = TrainedModel.from_run(ROOT / "models" / "tiles")
    exported = model.config["exported"]
    for command in (None, exported["command"].replace("data.exclude", "data.other")):
        other = replace(model, config=model.config | {"exported": exported | {"command": command}})
        with pytest.raises(MissingRequirement, match="needs a run that was trained with data.exclude=.*tiles does not"):
            prompts.require_held_out(other, [], tmp_path / "held_out.txt")
