"""`python -m benchmarks recipes` measures the training steps of a recipe and nothing else."""

from argparse import Namespace

import pytest

from benchmarks import recipes
from benchmarks.measure import save_blurred_noise


@pytest.mark.slow
def test_a_row_is_of_training_steps_without_a_preview(tmp_path):
    images = save_blurred_noise(tmp_path / "images", 20, 16, "png", classes=2)
    name, network, size, step, memory, loss = recipes.measure_recipe("digits", images, tmp_path)
    assert (name, network.partition(",")[0], size) == ("`digits`", "UNet", "32x32x3")
    assert min(map(float, loss.split(" to "))) > 0
    assert float(step.removesuffix(" s")) >= 0
    assert float(memory.removesuffix(" GiB")) > 0
    assert not (tmp_path / "digits" / "samples").exists()
    assert not list((tmp_path / "digits").rglob("*.ckpt"))


def test_only_takes_the_recipes_of_the_table(capsys, monkeypatch):
    monkeypatch.setattr(recipes, "measure_recipe", lambda name, *_: [name])
    recipes.main(Namespace(data=None, only=["pokemon"]))
    assert capsys.readouterr().out.splitlines()[2:] == ["| pokemon |"]
    with pytest.raises(SystemExit, match="--only digits: not a recipe of this table"):
        recipes.main(Namespace(data=None, only=["digits"]))
