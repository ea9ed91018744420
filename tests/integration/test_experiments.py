"""Every experiment runs: `debug=on` takes each along its whole path in seconds, in this process."""

import copy
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from diffusion_lit.config.compose import build_source, compose_configs, resolve_data
from diffusion_lit.config.expand import expand_overrides
from diffusion_lit.config.groups import CONF
from diffusion_lit.config.targets import build
from diffusion_lit.data.datamodule import ImageDataModule
from diffusion_lit.runs import checkpoints
from diffusion_lit.runs.load import TrainedModel
from diffusion_lit.runs.stored_config import read_model_config
from diffusion_lit.sampling.previews import preview_labels
from diffusion_lit.training.callbacks import sample_previews
from diffusion_lit.training.launch_run import fit
from tests.runs import run, trace

EXPERIMENTS = sorted(file.stem for file in (CONF / "experiment").glob("*.yaml") if file.stem != "none")


@pytest.fixture(autouse=True)
def _resolver():
    OmegaConf.register_new_resolver("hex", lambda digits: "0" * digits, replace=True)


def configuration(*words: str, complete: bool = True):
    return compose_configs("train", expand_overrides(list(words), None), complete=complete)[0]


small = cache(lambda experiment: configuration(f"experiment={experiment}", "debug=on"))
plain = cache(lambda experiment: configuration(f"experiment={experiment}", complete=False))


# a recipe of each network; the others run with -m slow
QUICK = ("cifar10_cond", "digits", "minecraft_skins", "mnist_cond", "sprites_context", "tiles_prompt")
CASES = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in EXPERIMENTS]


@pytest.mark.parametrize("experiment", CASES)
def test_every_experiment_trains_resumes_and_samples(tmp_path, monkeypatch, experiment):
    monkeypatch.setitem(ImageDataModule.__init__.__kwdefaults__, "val_images", 16)  # fewer of both along the same path
    monkeypatch.setattr(sample_previews, "preview_labels", lambda *rows: preview_labels(*rows)[::8])
    settings, source = resolve_data(small(experiment))
    settings["data"]["classifier_images"] = 0
    if "num_images" in settings["data"]:  # made on the spot, a fifth of them for validation
        settings["data"]["num_images"] = 40
        source = build_source(settings["data"])
    for more in ({"max_steps": 1}, {"max_steps": 2, "resume": str(tmp_path)}):
        fit(settings | more, source, tmp_path, [f"experiment={experiment}"])
    rows = trace(tmp_path)
    assert [row["step"] for row in rows] == ["1", "2"]
    assert all(np.isfinite(float(row["train/loss"])) for row in rows)
    assert checkpoints.list_steps(tmp_path)[-1] == 2
    with Image.open(tmp_path / "samples" / "step-00000002.png") as grid:
        assert len(set(grid.convert("L").getdata())) > 2
    model = TrainedModel.from_run(tmp_path)
    assert model.generate([0, 0], [1, 2]).shape == (2, *model.codec.image_shape)


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
    "icons_prompt": (0, 1_274_000),  # and a vector for each word of the captions
    "skins_prompt": (0, 2_918_304),
    "tiles_prompt": (0, 1_274_000),
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


# what the other projects trained with, whatever becomes of the recipes that theirs inherit from
DDPM = {"sampler.name": "ddpm", "sampler.steps": None, "sampler.clip_x0": True, "sampler.variance_type": "fixed_small"}
DDIM = {"sampler.name": "ddim", "sampler.eta": 1.0, "sampler.timestep_spacing": "leading", "sampler.clip_x0": True}
COSINE = {"diffusion.num_train_timesteps": 1000, "diffusion.beta_schedule": "cosine", "diffusion.loss": "mse"}
CLIPPED = {
    "diffusion.num_train_timesteps": 1000, "diffusion.beta_schedule": "cosine_clipped", "diffusion.beta_start": 1e-4,
    "diffusion.beta_end": 0.02, "diffusion.prediction_type": "epsilon", "diffusion.loss": "l1",
    "weighting._target_": "diffusion_lit.diffusion.weighting.Uniform",
}  # fmt: skip
UNIFORM = {"weighting._target_": "diffusion_lit.diffusion.weighting.Uniform", "diffusion.prediction_type": "epsilon"}
ADAM = {"optimizer._target_": "torch.optim.Adam", "optimizer.betas": [0.9, 0.999], "optimizer.weight_decay": 0.0}
ADAMW = {"optimizer._target_": "torch.optim.AdamW", "optimizer.eps": 1e-8, "lr_schedule.name": "cosine"}
NO_EXTRAS = {
    "ema._target_": "diffusion_lit.training.ema.NoEMA", "trainer.gradient_clip_val": None, "data.val_fraction": 0.0
}  # fmt: skip
FLOWERS = {
    "data.image_size": 64, "data.channels": 3, "data.resample": "bilinear", "data.fit": "crop", "data.flip": 0.5
}  # fmt: skip
README_COMMAND = {
    "optimizer.lr": 1e-4, "optimizer.betas": [0.95, 0.999], "optimizer.weight_decay": 1e-5,
    "lr_schedule.warmup_steps": 300, "global_batch_size": 16, "max_epochs": 121, "sampler.steps": 50,
}  # fmt: skip
SPRITES = NO_EXTRAS | ADAM | UNIFORM | DDPM | {
    "seed": 42, "data.image_size": 16, "data.flip": 0.0, "model.norm": "batch", "label_dropout": 0.1,
    "diffusion.beta_schedule": "linear_one_based", "diffusion.beta_start": 1e-3, "diffusion.beta_end": 0.02,
    "sampler.variance_type": "fixed_large", "sampler.clip_x0": False, "lr_schedule.name": "staircase",
    "lr_schedule.cycles": 100, "lr_schedule.warmup_steps": 0, "global_batch_size": 100, "max_epochs": 100,
}  # fmt: skip
ORIGINALS = {
    "minecraft_skins_faithful": NO_EXTRAS | ADAM | UNIFORM | COSINE | DDPM | {
        "seed": 23, "data.image_size": 64, "data.channels": 4, "data.alpha": "keep", "data.flip": 0.0,
        "optimizer.lr": 2e-4, "lr_schedule.name": "cosine", "lr_schedule.warmup_fraction": 0.001,
        "strategy.precision": "16-mixed", "global_batch_size": 480, "max_epochs": 100,
    },
    "pixel_icons_faithful": NO_EXTRAS | ADAM | UNIFORM | DDPM | {
        "data.image_size": 32, "data.channels": 3, "data.resample": "bilinear", "data.fit": "stretch", "data.flip": 0.5,
        "diffusion.num_train_timesteps": 1000, "diffusion.beta_schedule": "linear", "diffusion.beta_start": 1e-4,
        "diffusion.beta_end": 0.02, "diffusion.loss": "mse", "optimizer.lr": 1e-4, "lr_schedule.name": "constant",
        "lr_schedule.warmup_steps": 0, "global_batch_size": 16, "max_epochs": 500,
    },
    "cifar10_snr_x0_faithful": ADAMW | COSINE | DDPM | {
        "data.image_size": 32, "data.flip": 0.0, "data.random_crop": 0, "model.class_embed_type": "timestep",
        "diffusion.prediction_type": "sample", "weighting._target_": "diffusion_lit.diffusion.weighting.SNR",
        "ema.inv_gamma": 1.0, "ema.power": 0.75, "ema.max_decay": 0.9999, "optimizer.lr": 1e-4,
        "optimizer.betas": [0.95, 0.999], "optimizer.weight_decay": 1e-6, "lr_schedule.warmup_steps": 1000,
        "trainer.gradient_clip_val": 1.0, "strategy.accumulate": 4, "global_batch_size": 512, "max_steps": 196_000,
        "label_dropout": 0.0, "checkpoint_every": 2000,
    },
    "sprites_context_faithful": SPRITES | {
        "model.features": 128, "diffusion.num_train_timesteps": 500, "optimizer.lr": 3e-3,
    },
    "sprites_context_t1500": SPRITES | {
        "model.features": 128, "diffusion.num_train_timesteps": 1500, "optimizer.lr": 3e-3,
    },
    "sprites_context_t3000": SPRITES | {
        "model.features": 256, "diffusion.num_train_timesteps": 3000, "optimizer.lr": 3e-4,
    },
    "flowers_faithful": NO_EXTRAS | ADAMW | CLIPPED | DDIM | FLOWERS | {
        "sampler.steps": 50, "optimizer.lr": 1e-3, "optimizer.betas": [0.95, 0.999], "optimizer.weight_decay": 0.05,
        "lr_schedule.warmup_steps": 500, "global_batch_size": 64, "max_steps": 40_000, "max_epochs": None,
    },
    "flowers_base_faithful": NO_EXTRAS | ADAMW | CLIPPED | DDIM | FLOWERS | README_COMMAND | {
        "seed": 42, "data.fit": "stretch", "data.flip": 0.0, "sampler.steps": 250, "optimizer.betas": [0.9, 0.99],
        "optimizer.weight_decay": 0.0, "lr_schedule.warmup_steps": 100,
        "ema._target_": "diffusion_lit.training.ema.RisingDecay", "ema.decay": 0.996, "sample_every": 1000,
    },
    "pokemon_faithful": NO_EXTRAS | ADAMW | CLIPPED | DDIM | FLOWERS | README_COMMAND,
}  # fmt: skip


@pytest.mark.parametrize("experiment", [name for name in EXPERIMENTS if name.endswith(("_faithful", "00"))])
def test_what_is_called_faithful_is(experiment):
    config = plain(experiment)
    assert {key: OmegaConf.select(config, key) for key in ORIGINALS[experiment]} == ORIGINALS[experiment]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_debug_keeps_what_pictures_and_classes_there_are(experiment):
    for key in ("image_size", "channels"):
        assert small(experiment).data[key] == plain(experiment).data[key]
    assert small(experiment).diffusion.prediction_type == plain(experiment).diffusion.prediction_type
    assert small(experiment).model._target_ == plain(experiment).model._target_
    assert (small(experiment).max_steps, small(experiment).logger._target_.rpartition(".")[2]) == (2, "FilesOnly")
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
        words = expand_overrides(["experiment=mine", "data=synthetic", *words], str(tmp_path))
        config = compose_configs("train", words, str(tmp_path))[0]
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
    config = compose_configs("train", mine, str(own.parent))[0]
    assert config.weighting.gamma == 3.0
    config = compose_configs("train", [*mine, "weighting=uniform"], str(own.parent))[0]
    assert "gamma" not in config.weighting
    words = ["--config-dir", str(own.parent), *mine, "weighting=uniform", "debug=on", f"run_dir={tmp_path / 'run'}"]
    run("train", *words, cwd=tmp_path)
    assert "gamma" not in read_model_config(tmp_path / "run")["weighting"]


@pytest.mark.parametrize(("channels", "labels"), [(1, "auto"), (3, "none"), (4, "auto")])
def test_synthetic_pictures_are_the_same_each_time_and_show_their_class(channels, labels):
    node = {
        "_target_": "diffusion_lit.data.sources.synthetic.Synthetic",
        "image_size": 16,
        "channels": channels,
        "labels": labels,
    }
    one, two = (build_source(node).splits() for _ in range(2))
    assert {name: len(split.labels) for name, split in one.items()} == {"train": 256, "val": 64}
    for name in one:
        np.testing.assert_array_equal(one[name].images, two[name].images)
    pictures, y = one["train"].images, one["train"].labels
    assert pictures.dtype == np.uint8
    assert pictures.shape == (256, 16, 16) + ((channels,) if channels > 1 else ())
    assert set(y) == (set(range(10)) if labels == "auto" else {0})
    if channels == 4:
        assert set(np.unique(pictures[..., 3])) == {0, 255}
    if channels == 3:
        middle = pictures[:, 8, 8].astype(float)
        assert np.ptp(middle[0::10], axis=0).max() < np.ptp(middle, axis=0).max()  # one colour a class


def test_debug_is_on_or_off(tmp_path):
    assert "debug=maybe: must be one of on, off" in run("train", "debug=maybe", cwd=Path(tmp_path), code=2)
