"""Every experiment runs: `debug=on` takes each along its whole path in seconds, in this process."""

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
from diffusion_lit.train import expanded, fit
from tests.runs import run, trace

EXPERIMENTS = sorted(file.stem for file in (CONF / "experiment").glob("*.yaml") if file.stem != "none")


@pytest.fixture(autouse=True)
def _resolver():
    OmegaConf.register_new_resolver("hex", lambda digits: "0" * digits, replace=True)


def configuration(*words: str, complete: bool = True):
    return composed("train", expanded(list(words), None), complete=complete)[0]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_trains_resumes_and_samples(tmp_path, experiment):
    words = [f"experiment={experiment}", "debug=on", "data.judge_images=0"]
    for more in (["max_steps=1"], ["max_steps=2", f"resume={tmp_path}"]):
        config, source = with_data_facts(configuration(*words, *more))
        fit(config, source, tmp_path, [*words, *more])
    rows = trace(tmp_path)
    assert [row["step"] for row in rows] == ["1", "2"]
    assert all(np.isfinite(float(row["loss"])) for row in rows)
    assert checkpoints.steps_of(tmp_path)[-1] == 2
    with Image.open(tmp_path / "samples" / "step-00000002.png") as grid:
        assert len(set(grid.convert("L").getdata())) > 2
    model = Trained(tmp_path)
    assert model.generate([0, 0], [1, 2]).shape == (2, *model.shape)


# what the projects that they come from had, asserted to the parameter
COUNTS = {
    "minecraft_skins": ([], 0, 120_252_164),
    "pixel_icons": (["data.channels=3", "data.alpha=keep"], 0, 14_738_051),
    "cifar10_snr_x0": ([], 10, 114_001_923),
}


@pytest.mark.parametrize("experiment", COUNTS)
def test_networks_have_the_parameters_of_their_originals(experiment):
    words, num_classes, count = COUNTS[experiment]
    config = composed("train", [f"experiment={experiment}", f"data.num_classes={num_classes}", *words], complete=False)[
        0
    ]
    with torch.device("meta"):
        net = build(OmegaConf.to_container(config.model, resolve=True))
    assert sum(p.numel() for p in net.parameters()) == count


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_debug_keeps_what_pictures_and_classes_there_are(experiment):
    plain = configuration(f"experiment={experiment}", complete=False)
    small = configuration(f"experiment={experiment}", "debug=on")
    for key in ("image_size", "channels"):
        assert small.data[key] == plain.data[key]
    assert small.diffusion.prediction_type == plain.diffusion.prediction_type
    assert small.model._target_ == plain.model._target_
    assert (small.max_steps, small.logger._target_.rpartition(".")[2]) == (2, "Files")


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
