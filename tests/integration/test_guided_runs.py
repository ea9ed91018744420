"""A run guided by itself, by an earlier checkpoint and by a smaller run, through the commands."""

import json
import shutil

import numpy as np
import pytest

from diffusion_lit.runs.load import TrainedModel
from tests.cases import each
from tests.runs import TINY, run
from tests.sampled import sampler_of

# ------------------------------------------------------------------------------------------------------- commands


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A tiny run of classes with an earlier checkpoint, one of a smaller network, one without classes."""
    folder = tmp_path_factory.mktemp("guided")
    words = [*TINY, "max_steps=6", "checkpoint_every=3", "val_every=0", "sample_every=0"]
    run("train", *words, "guidance_scale=2", "guidance_rescale=0.7", "run_dir=whole", cwd=folder)
    run("train", *words, "model.block_out_channels=[4,4]", "run_dir=small", cwd=folder)
    run("train", *words, "data.labels=none", "data=synthetic", "data.image_size=8", "run_dir=plain", cwd=folder)
    return folder


def test_a_run_is_guided_by_itself_earlier_and_by_a_smaller_one(runs, tmp_path):
    base = [f"run={runs / 'whole'}", "num_images=4", "npy=true", "classes=[3,8]", "sampler.steps=5"]
    made = {}
    for name, words in {
        "free": [],
        "earlier": [f"guide={runs / 'whole'}", "guide_checkpoint=3", "guidance_interval=[0.1,0.9]"],
        "smaller": [f"guide={runs / 'small'}", "guidance_rescale=0", "guidance_scale=3"],
    }.items():
        run("sample", *base, *words, f"out={tmp_path / name}", cwd=tmp_path)
        made[name] = np.load(tmp_path / name / "images.npy")
        manifest = json.loads((tmp_path / name / "manifest.json").read_text())
        asked = {key: manifest[key] for key in ("guidance_scale", "guidance_interval", "guidance_rescale")}
        assert (
            list(asked.values())
            == {
                "free": [2, None, 0.7],
                "earlier": [2, [0.1, 0.9], 0.7],
                "smaller": [3, None, 0],
            }[name]
        )
        assert (manifest["guide"] or "").endswith({"free": "", "earlier": "03.ckpt", "smaller": "06.ckpt"}[name])
    assert not (made["free"] == made["earlier"]).all()

    small = TrainedModel.from_run(runs / "small", device="cpu")
    model = TrainedModel.from_run(runs / "whole", device="cpu", guidance_scale=3, guidance_rescale=0, guide=small)
    model.sampler = sampler_of(**model.config["sampler"] | {"steps": 5})
    seeds = [image["seed"] for image in manifest["images"]]
    again = model.generate([3, 3, 8, 8], seeds).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(again, made["smaller"])


@each(
    ("words", "told"),
    [
        ("guidance_interval=[0.8,0.2]", ["[0.8, 0.2]: the lower noise level comes first. Write [0.2, 0.8]"]),
        ("guidance_interval=[0.1,1.2] guidance_rescale=2", ["[0.1, 1.2]: must be null", "guidance_rescale=2: must"]),
        ("guidance_scale=1 guidance_rescale=0.5", ["guidance_rescale=0.5: has no effect at guidance_scale=1"]),
        ("guide={whole}", ["is the network itself: choose an earlier guide_checkpoint"]),
        ("guide={whole} guide_checkpoint=3 guidance_scale=1", ["has no effect at guidance_scale=1."]),
        ("guide_checkpoint=3", ["guide_checkpoint=3: needs guide=<run>"]),
        ("guide={whole} guide_checkpoint=4", ["has no checkpoint '4'. Choose last, best, or a step of: 3, 6"]),
        ("guide=nowhere", ["nowhere: no such folder"]),
        (
            "guide={other}",
            ["prediction_type=epsilon, the run v_prediction: must", "data.image_size=16, the run 8: must"],
        ),
    ],
)  # fmt: skip
def test_what_cannot_guide_is_refused_in_words(runs, tmp_path, words, told):
    other = tmp_path / "other"
    shutil.copytree(runs / "small", other, symlinks=True)
    text = (other / "config.yaml").read_text().replace("prediction_type: v_prediction", "prediction_type: epsilon")
    (other / "config.yaml").write_text(text.replace("image_size: 8", "image_size: 16"))
    words = words.format(whole=runs / "whole", other=other).split()
    code = 4 if "nowhere" in words[0] or "guide_checkpoint=4" in words else 2
    printed = run("sample", f"run={runs / 'whole'}", *words, "out=out", cwd=tmp_path, code=code)
    for line in told:
        assert line in printed
    assert not (tmp_path / "out").exists()


def test_without_classes_only_another_network_guides(runs, tmp_path):
    words = [f"run={runs / 'plain'}", "num_images=2", "out=out"]
    printed = run("sample", *words, "guidance_scale=2", "guidance_rescale=0.5", cwd=tmp_path, code=2)
    assert printed.count("classifier-free guidance needs classes, which the run does not have. Add guide=<run>") == 2
    run("sample", *words, f"guide={runs / 'plain'}", "guide_checkpoint=3", "guidance_scale=2", cwd=tmp_path)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["guidance_scale"] == 2
