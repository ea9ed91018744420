"""Every experiment runs: `debug=on` takes each along its whole path in seconds, in this process."""

import copy
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from diffusion_lit.config import CONF, build, composed, source_of, with_data_facts
from diffusion_lit.runs import checkpoints
from diffusion_lit.runs.folder import read_config
from diffusion_lit.runs.trained import Trained
from diffusion_lit.sampling.previews import preview_labels
from diffusion_lit.train import expanded, fit
from diffusion_lit.training import probe, recorder
from tests.runs import run, trace

EXPERIMENTS = sorted(file.stem for file in (CONF / "experiment").glob("*.yaml") if file.stem != "none")


@pytest.fixture(autouse=True)
def _resolver():
    OmegaConf.register_new_resolver("hex", lambda digits: "0" * digits, replace=True)


def configuration(*words: str, complete: bool = True):
    return composed("train", expanded(list(words), None), complete=complete)[0]


small = cache(lambda experiment: configuration(f"experiment={experiment}", "debug=on"))
plain = cache(lambda experiment: configuration(f"experiment={experiment}", complete=False))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_trains_resumes_and_samples(tmp_path, monkeypatch, experiment):
    monkeypatch.setattr(probe, "PER_BIN", 1)  # fewer of both along the same path
    monkeypatch.setattr(recorder, "preview_labels", lambda num_classes: preview_labels(num_classes)[::8])
    settings, source = with_data_facts(small(experiment))
    settings["data"]["judge_images"] = 0
    for more in ({"max_steps": 1}, {"max_steps": 2, "resume": str(tmp_path)}):
        fit(settings | more, source, tmp_path, [f"experiment={experiment}"])
    rows = trace(tmp_path)
    assert [row["step"] for row in rows] == ["1", "2"]
    assert all(np.isfinite(float(row["loss"])) for row in rows)
    assert checkpoints.steps_of(tmp_path)[-1] == 2
    with Image.open(tmp_path / "samples" / "step-00000002.png") as grid:
        assert len(set(grid.convert("L").getdata())) > 2
    model = Trained(tmp_path)
    assert model.generate([0, 0], [1, 2]).shape == (2, *model.shape)


# classes that the data have, and parameters; where they come from another project, down to its last one
COUNTS = {
    "celeba": (0, 35_746_307),
    "cifar10_cond": (10, 35_751_939),
    "cifar10_snr_x0": (10, 114_001_923),
    "cifar10_snr_x0_faithful": (10, 114_001_923),
    "digits": (10, 268_769),
    "fer2013_cond": (7, 71_760_897),
    "minecraft_skins": (0, 120_252_164),
    "minecraft_skins_faithful": (0, 120_252_164),
    "flowers": (0, 2_346_835),
    "flowers_base": (0, 33_995_395),
    "flowers_base_faithful": (0, 33_995_395),
    "flowers_faithful": (0, 2_346_835),
    "mnist_cond": (10, 1_624_577),
    "pixel_icons": (0, 14_739_204),  # alpha is a channel more
    "pixel_icons_faithful": (0, 14_738_051),
    "pokemon": (0, 33_995_395),
    "pokemon_faithful": (0, 33_995_395),
    "sprites_context": (5, 5_902_851),
    "sprites_context_faithful": (5, 5_902_851),
    "sprites_context_t1500": (5, 5_902_851),
    "sprites_context_t3000": (5, 23_569_411),
}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_has_the_parameters_that_it_should(experiment):
    num_classes, count = COUNTS[experiment]
    config = copy.deepcopy(plain(experiment))
    config.data.num_classes = num_classes
    with torch.device("meta"):
        net = build(OmegaConf.to_container(config.model, resolve=True))
    assert sum(p.numel() for p in net.parameters()) == count


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_debug_keeps_what_pictures_and_classes_there_are(experiment):
    for key in ("image_size", "channels"):
        assert small(experiment).data[key] == plain(experiment).data[key]
    assert small(experiment).diffusion.prediction_type == plain(experiment).diffusion.prediction_type
    assert small(experiment).model._target_ == plain(experiment).model._target_
    assert (small(experiment).max_steps, small(experiment).logger._target_.rpartition(".")[2]) == (2, "Files")
    assert small(experiment).sampler.steps == 2


def test_words_of_the_command_line_win_over_debug():
    config = configuration(
        "debug=on", "experiment=cifar10_cond", "max_steps=7", "model.block_out_channels=[64,64,64,64]"
    )
    assert config.max_steps == 7
    assert list(config.model.block_out_channels) == [64, 64, 64, 64]


def test_steps_on_the_command_line_win_over_the_epochs_of_an_experiment(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nmax_epochs: 50\n")

    def lengths(*words: str) -> tuple:
        words = expanded(["experiment=mine", "data=synthetic", *words], str(tmp_path))
        config = composed("train", words, str(tmp_path))[0]
        return config.max_steps, config.max_epochs

    assert lengths() == (20000, 50)
    assert lengths("max_steps=5") == (5, None)
    assert lengths("max_epochs=2") == (20000, 2)
    assert lengths("debug=on") == (2, None)
    assert lengths("debug=on", "max_epochs=0.1")[1] == 0.1
    assert lengths("max_steps=5", "max_epochs=null") == (5, None)


def test_another_choice_leaves_out_what_the_experiment_says_of_its_own(tmp_path):
    """`model.dropout` of cifar10_cond goes for any UNet; what only its own choice has is not asked of another."""
    own = tmp_path / "conf" / "experiment"
    own.mkdir(parents=True)
    text = "# @package _global_\ndefaults:\n  - override /weighting: min_snr\nweighting:\n  gamma: 3.0\nmax_steps: 3\n"
    (own / "mine.yaml").write_text(text)
    mine = ["experiment=mine", "data=synthetic"]
    config = composed("train", mine, str(own.parent))[0]
    assert config.weighting.gamma == 3.0
    config = composed("train", [*mine, "weighting=uniform"], str(own.parent))[0]
    assert "gamma" not in config.weighting
    words = ["--config-dir", str(own.parent), *mine, "weighting=uniform", "debug=on", f"run_dir={tmp_path / 'run'}"]
    run("train", *words, cwd=tmp_path)
    assert "gamma" not in read_config(tmp_path / "run")["weighting"]


@pytest.mark.parametrize(("channels", "labels"), [(1, "auto"), (3, "none"), (4, "auto")])
def test_synthetic_pictures_are_the_same_each_time_and_show_their_class(channels, labels):
    node = {
        "_target_": "diffusion_lit.data.synthetic.Synthetic",
        "image_size": 16,
        "channels": channels,
        "labels": labels,
    }
    one, two = (source_of(node).splits() for _ in range(2))
    assert {name: len(split.labels) for name, split in one.items()} == {"train": 256, "val": 64}
    for name in one:
        np.testing.assert_array_equal(one[name].pictures, two[name].pictures)
    pictures, y = one["train"].pictures, one["train"].labels
    assert pictures.dtype == np.uint8
    assert pictures.shape == (256, 16, 16) + ((channels,) if channels > 1 else ())
    assert set(y) == (set(range(10)) if labels == "auto" else {0})
    if channels == 4:
        assert set(np.unique(pictures[..., 3])) == {0, 255}
    if channels == 3:
        middle = pictures[:, 8, 8].astype(float)
        assert np.ptp(middle[0::10], axis=0).max() < np.ptp(middle, axis=0).max()  # one colour a class


def test_debug_is_on_or_off(tmp_path):
    assert "debug=maybe: must be on or off" in run("train", "debug=maybe", cwd=Path(tmp_path), code=2)
