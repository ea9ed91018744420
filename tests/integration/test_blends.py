"""Blends of classes in place of a class: what they are called, what they make, and who does not take them."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from diffusion_lit import sample
from diffusion_lit.diffusion.conditions import ClassCondition
from diffusion_lit.diffusion.seeds import image_seeds
from diffusion_lit.networks.context_unet import ContextUnet
from diffusion_lit.runs import stored_config
from diffusion_lit.runs.load import TrainedModel
from diffusion_lit.sampling.guidance import add_classifier_free_guidance
from diffusion_lit.sampling.labels import format_label, make_blend, nonzero_shares
from tests.cases import each
from tests.runs import run

NAMES = ["hero", "10", "food", "side-facing"]


def test_a_blend_has_a_share_of_each_class():
    assert make_blend({"food": 0.5, "hero": 0.25}, NAMES) == (0.25, 0, 0.5, 0)
    assert make_blend({3: 1}, NAMES) == (0, 0, 0, 1)
    assert make_blend({10: 1}, NAMES) == (0, 1, 0, 0)  # the class of that name
    shares = {"10": 1.5, "side-facing": -0.5}
    assert nonzero_shares(make_blend(shares, NAMES), NAMES) == shares
    for wrong in ({"hro": 1}, {4: 1}, {-1: 1}, {"hero": 0.5, 0: 0.5}, {True: 1}):
        with pytest.raises(ValueError, match="not a class of this run|the same class twice"):
            make_blend(wrong, NAMES)


def test_a_blend_is_told_in_its_shares():
    assert format_label(2, NAMES) == "food"
    assert format_label((0.5, 0, 0.5, 0), NAMES) == "0.5 hero + 0.5 food"
    assert format_label((0, 1.0, -0.5, 0), NAMES) == "10 + -0.5 food"
    assert format_label((0.0, 0, 0, 0), NAMES) == "no class"


@pytest.mark.parametrize("scale", [0, 0.5, 3])
def test_guidance_of_a_blend_of_one_class_is_that_of_the_class(scale):
    """Also its other end: what the null label is to labels the zero vector is to blends."""
    torch.manual_seed(0)
    net = ContextUnet(16, 3, len(NAMES), features=8, norm="group", num_train_timesteps=10).eval()
    x_t, t, labels = torch.randn(5, 3, 16, 16), torch.arange(5), torch.tensor([0, 1, 2, 3, 0])
    blends = torch.eye(len(NAMES))[labels]
    with torch.no_grad():
        guided = add_classifier_free_guidance(net, ClassCondition(len(NAMES)), scale)
        assert torch.equal(guided(x_t, t, blends), guided(x_t, t, labels))


def test_a_blend_of_one_class_makes_the_pixels_of_the_class(sprites_run, tmp_path):
    """In this process by labels, as a command by blends; and half of two classes makes something else."""
    words = ["context=[{color 1: 1}, {0: 0.5, color 3: 0.5}]", "images_per_class=3", "same_noise=true", "npy=true"]
    words += ["sampler=ddim", "sampler.steps=4", "guidance_scale=2", "per_class=true", f"out={tmp_path / 'out'}"]
    run("sample", f"run={sprites_run}", *words, cwd=tmp_path)
    blended = torch.from_numpy(np.load(tmp_path / "out" / "images.npy")).permute(0, 3, 1, 2)
    assert len(blended) == 6
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    model = TrainedModel.from_run(sprites_run, device="cpu", sampler=manifest["sampler"], guidance_scale=2)
    seeds = image_seeds(0, 3) * 2
    assert torch.equal(model.generate([1] * 3 + [0] * 3, seeds)[:3], blended[:3])
    blends = [(0.0, 1.0, 0.0, 0.0, 0.0)] * 3 + [(0.5, 0.0, 0.0, 0.5, 0.0)] * 3
    assert torch.equal(model.generate(blends, seeds), blended)
    for label in (0, 1, 3):
        assert not torch.equal(model.generate([label] * 6, seeds)[3:], blended[3:])

    told = [{key: image[key] for key in ("seed", "context", "class")} for image in manifest["images"]]
    assert told[2] == {"seed": seeds[2], "context": {"color 1": 1.0}, "class": "color 1"}
    words = {"context": {"color 0": 0.5, "color 3": 0.5}, "class": "0.5 color 0 + 0.5 color 3"}
    assert told[3] == {"seed": seeds[0]} | words
    pages = [tmp_path / "out" / f"grid_{name}.png" for name in ("000_color 1", "001_0.5 color 0 + 0.5 color 3")]
    with Image.open(tmp_path / "out" / "classes.gif") as gif:
        assert (gif.n_frames, gif.info["duration"]) == (2, 1000)
        assert gif.size == tuple(max(edges) for edges in zip(*[Image.open(page).size for page in pages], strict=True))
    zoom = 4  # of pictures of 16 px
    for page, k in zip(pages, (1, 4), strict=True):
        left, top = 2 + 16 * zoom + 2, 2 + 20  # the second of a square of two columns, under a title
        tile = Image.open(page).crop((left, top, left + 16 * zoom, top + 16 * zoom))
        enlarged = blended[k].repeat_interleave(zoom, 1).repeat_interleave(zoom, 2)
        assert np.array_equal(np.asarray(tile), enlarged.permute(1, 2, 0))


def test_what_trained_does_not_take(digits_run, sprites_run, monkeypatch):
    sprites = TrainedModel.from_run(sprites_run, device="cpu")
    monkeypatch.setattr("diffusion_lit.networks.unet.UNet.supports_blends", False)
    digits = TrainedModel.from_run(digits_run, device="cpu")
    for labels in ([0.5], [(0.5,) * 10], [(1,) + (0,) * 9]):
        with pytest.raises(ValueError, match="UNet takes one class at a time"):
            digits.generate(labels, [0])
    for labels in ([0.5], [(0.5, 0.5)], [(1, 0, 0, 0, 0)]):
        with pytest.raises(ValueError, match="for each of the 5 classes"):
            sprites.generate(labels, [0])


@pytest.fixture
def unlabelled_run(sprites_run, tmp_path):
    copy = shutil.copytree(sprites_run, tmp_path / "unlabelled", symlinks=True)
    config = stored_config.read_model_config(copy)
    config["data"] |= {"class_names": [], "num_classes": 0}
    config["model"]["num_classes"] = 0
    OmegaConf.save(config, copy / "config.yaml")
    return copy


@pytest.fixture
def unet2d_run(digits_run, tmp_path):
    """By its configuration."""
    copy = shutil.copytree(digits_run, tmp_path / "unet2d", symlinks=True)
    config = stored_config.read_model_config(copy)
    config["model"]["_target_"] = "diffusion_lit.networks.unet.UNet2D"
    OmegaConf.save(config, copy / "config.yaml")
    return copy


@each(
    ("of", "words", "told"),
    [
        (
            "sprites",
            ["context={hero: 1}"],
            'context={"hero": 1}: hero: not a class of this run. Choose from 0 color 0, 1',
        ),
        ("sprites", ["context=[{0: 1}, {5: 1}]"], "5: not a class of this run"),
        ("sprites", ["context={0: 0.5, color 0: 0.5}"], "0 and color 0: the same class twice"),
        ("sprites", ["context={0: much}"], "must be null or dict[float]"),
        ("sprites", ["context={0: null}"], "must be null or dict[float]"),
        ("sprites", ["context={0: .inf}"], "must be null or dict[float]"),
        ("sprites", ["context={}"], "must be null or dict[float] or list[dict[float]] x 1+"),
        ("sprites", ["context=[{0: 1}, 2]"], "must be null or dict[float] or list[dict[float]] x 1+"),
        ("sprites", ["context=hero"], "must be null or dict[float] or list[dict[float]] x 1+"),
        ("sprites", ["context={0: 1}", "classes=[1]"], 'classes=[1] and context={"0": 1}: use one of the two'),
        ("sprites", ["seed={0: 1}"], "seed={0: 1}: must be one value or a list"),
        ("unet2d", ["context={3: 0.5, 8: 0.5}"], "context: UNet2D, the network of this run, takes one class at a time"),
        ("unet2d", ["interpolate=true"], "interpolate: UNet2D, the network of this run, takes one class at a time"),
        ("digits", ["interpolate=true", "classes=3"], "interpolate=true: needs two or more classes, blends or prompts"),
        ("unlabelled", ["interpolate=true"], "interpolate=true: this run has no classes"),
        ("unlabelled", ["context={0: 1}"], 'context={"0": 1}: this run has no classes'),
        ("unlabelled", ["per_class=true"], "per_class=true: this run has no classes"),
    ],
)
def test_mistakes(digits_run, sprites_run, unlabelled_run, unet2d_run, tmp_path, monkeypatch, capsys, of, words, told):
    runs = {"sprites": sprites_run, "digits": digits_run, "unlabelled": unlabelled_run, "unet2d": unet2d_run}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sample", f"run={runs[of]}", *words, "out=out"])
    with pytest.raises(SystemExit) as ended:
        sample.main()
    printed = capsys.readouterr().err
    assert ended.value.code == 2
    assert printed.startswith("error: ")
    assert told in printed
    assert not (tmp_path / "out").exists()
