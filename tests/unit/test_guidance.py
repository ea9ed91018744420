"""Guidance on Gaussians, where what it comes to is known, bit by bit where it is off, and as a command."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers.guiders.guider_utils import rescale_noise_cfg

from diffusion_lit.diffusion.loss import Diffusion
from diffusion_lit.diffusion.schedules import NoiseTable
from diffusion_lit.diffusion.weighting import Uniform
from diffusion_lit.runs.build import guided
from diffusion_lit.runs.load import Trained
from diffusion_lit.sampling.generate import generate
from diffusion_lit.sampling.guidance import Within, autoguided, classifier_free, led_away
from tests.runs import TINY, run
from tests.unit.test_samplers import COSINE, sampler_of, unet

TABLES = [COSINE, NoiseTable(beta_schedule="linear", zero_terminal_snr=True)]
MEANS = (0.15, -0.1, 0.05)  # of the pictures of class 0 and 1, and of all
SPREAD = 0.1


def share_of_noise(table: NoiseTable, t: int) -> float:
    return (table.sigma[t] / (table.sigma[t] + table.alpha[t])).item()


def gaussian(table: NoiseTable, mean_of):
    """The exact v of pictures whose every value is drawn around `mean_of(label, share of noise)`."""

    def net(x_t, t, y):
        a, s = table.alpha[t[0]], table.sigma[t[0]]
        means = [mean_of(label, share_of_noise(table, t[0])) for label in y.tolist()]
        mean = torch.tensor(means, dtype=torch.float64)[:, None, None, None]
        x0 = mean + a * SPREAD**2 / (a**2 * SPREAD**2 + s**2) * (x_t.double() - a * mean)
        eps = (x_t.double() - a * x0) / s
        return a * eps - s * x0  # in float64: what guidance does to it is compared to the last digits of float32

    return net


def images(net, table=COSINE, labels=(0, 1), sampler="ddim", **changes):
    sampler = sampler_of(sampler, **{"steps": 20, "batch_size": 2, "clip_x0": False, **changes})
    return generate(net, Diffusion(table, "v_prediction", Uniform()), sampler, labels, [5, 6], (1, 8, 8))


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0, 3.0])
@pytest.mark.parametrize("table", TABLES, ids=["cosine", "linear-zero"])
@pytest.mark.parametrize("interval", [None, (0.3, 0.7)])
def test_guided_gaussians_of_one_spread_are_gaussians_further_away(table, scale, interval):
    """The score of a Gaussian is linear in its mean: guided, it is that of the mean u + scale (c - u). The reference
    knows that mean and nothing of guidance."""
    net = gaussian(table, lambda label, share: MEANS[label])

    def further(label, share):
        inside = interval is None or interval[0] < share <= interval[1]
        return MEANS[2] + scale * (MEANS[label] - MEANS[2]) if inside else MEANS[label]

    config = {"data": {"num_classes": 2}, "guidance_scale": scale, "guidance_interval": interval}
    wanted = images(gaussian(table, further), table)
    torch.testing.assert_close(images(guided(net, config), table), wanted, rtol=0, atol=2e-6)
    assert (wanted - images(net, table)).abs().max() > 0.005

    # the same from a guide that takes every picture for one of all, whatever the label, without a null label
    guide = gaussian(table, lambda label, share: MEANS[2])
    torch.testing.assert_close(images(guided(net, config, guide), table), wanted, rtol=0, atol=2e-6)
    unlabelled = config | {"data": {"num_classes": 0}}
    torch.testing.assert_close(images(guided(net, unlabelled, guide), table), wanted, rtol=0, atol=2e-6)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmpp_2m"])
@pytest.mark.parametrize("table", TABLES, ids=["cosine", "linear-zero"])
def test_everywhere_is_plain_guidance_and_nowhere_is_none_to_the_bit(sampler, table):
    net, made = unet(), {}
    strong = classifier_free(net, 3, 3.0, 0.5)
    for name, model in {
        "plain": net,
        "guided": strong,
        "everywhere": Within(strong, net, (0, 1)),
        "nowhere": Within(strong, net, (0.5, 0.5)),
        "in the middle": Within(strong, net, (0.3, 0.7)),
    }.items():
        made[name] = images(model, table, sampler=sampler, clip_x0=True)
    assert torch.equal(made["everywhere"], made["guided"])
    assert torch.equal(made["nowhere"], made["plain"])
    assert not torch.equal(made["in the middle"], made["plain"])
    assert not torch.equal(made["in the middle"], made["guided"])


def test_outside_the_interval_a_step_costs_one_evaluation():
    sizes = []

    def counting(x_t, t, y):
        sizes.append((share_of_noise(COSINE, t[0]), len(y)))
        return torch.zeros_like(x_t)

    config = {"data": {"num_classes": 3}, "guidance_scale": 2, "guidance_interval": [0.2, 0.8]}
    images(guided(counting, config))
    assert len(sizes) == 20
    assert {size for share, size in sizes if 0.2 < share <= 0.8} == {4}
    assert {size for share, size in sizes if not 0.2 < share <= 0.8} == {2}


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_the_interval_is_a_share_of_noise_and_the_published_one_is_what_the_docstring_says(prediction):
    """sigma / alpha is the sigma of a process that does not shrink the picture, as the paper's."""
    low, high = (sigma / (1 + sigma) for sigma in (0.28, 5.42))
    assert (low, high) == (pytest.approx(0.22, abs=0.005), pytest.approx(0.84, abs=0.005))
    guided_at = []

    def marked(x_t, t, y):
        guided_at.append(int(t[0]))
        return torch.zeros_like(x_t)

    sampler = sampler_of("ddim", steps=1000, batch_size=1)
    net = Within(marked, lambda x_t, t, y: torch.zeros_like(x_t), (low, high))
    generate(net, Diffusion(COSINE, prediction, Uniform()), sampler, [0], [0], (1, 2, 2))
    sigmas = 1 / COSINE.snr.sqrt()
    assert sorted(guided_at) == [t for t in range(1000) if 0.28 < sigmas[t] <= 5.42]


def test_scale_1_is_the_network_and_0_the_guide():
    net, guide = unet(), gaussian(COSINE, lambda label, share: 0)
    for classes in (0, 3):
        for scale, wanted in ((1, net), (1.0, net), (0, guide)):
            config = {"data": {"num_classes": classes}, "guidance_scale": scale, "guidance_rescale": 0.7}
            assert guided(net, config, guide) is wanted
    every = {"data": {"num_classes": 3}, "guidance_scale": 1, "guidance_interval": [0.2, 0.8]}
    assert guided(net, every, guide) is guided(net, every) is net


def test_rescaling_keeps_the_spread_as_published():
    """Against diffusers, whose function is the paper's equations 15 and 16."""
    generator = torch.Generator().manual_seed(0)
    u, c = (torch.randn(5, 3, 8, 8, generator=generator, dtype=torch.float64) * 2 + 1 for _ in range(2))
    plain = led_away(u, c, 7.5, 0)
    torch.testing.assert_close(plain, u + 7.5 * (c - u))
    for share in (0.3, 0.7, 1.0):
        torch.testing.assert_close(led_away(u, c, 7.5, share), rescale_noise_cfg(plain, c, share))
    spread = c.std(dim=(1, 2, 3))
    assert (plain.std(dim=(1, 2, 3)) > 3 * spread).all()
    torch.testing.assert_close(led_away(u, c, 7.5, 1.0).std(dim=(1, 2, 3)), spread)
    zeros = torch.zeros_like(u)  # of a network whose last layer begins at zero
    assert torch.equal(led_away(zeros, zeros, 7.5, 0.7), zeros)


def test_a_guide_is_asked_with_the_label_and_once():
    x, t, y = torch.randn(4, 1, 8, 8), torch.full((4,), 500), torch.tensor([0, 1, 2, 0])
    asked = []

    def guide(x_t, t, y):
        asked.append(y.tolist())
        return -x_t

    with torch.no_grad():
        out = autoguided(unet(), guide, 2.5)(x, t, y)
        torch.testing.assert_close(out, -x + 2.5 * (unet()(x, t, y) + x), rtol=0, atol=1e-5)
    assert asked == [[0, 1, 2, 0]]


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

    small = Trained(runs / "small", device="cpu")
    model = Trained(runs / "whole", device="cpu", guidance_scale=3, guidance_rescale=0, guide=small)
    model.sampler = sampler_of(**model.config["sampler"] | {"steps": 5})
    seeds = [image["seed"] for image in manifest["images"]]
    again = model.generate([3, 3, 8, 8], seeds).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(again, made["smaller"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("guidance_interval=[0.8,0.2]", ["guidance_interval=[0.8, 0.2]: the cleaner end comes first, [0.2, 0.8]"]),
        ("guidance_interval=[0.1,1.2] guidance_rescale=2", ["each must be at most 1", "guidance_rescale=2: must"]),
        ("guidance_scale=1 guidance_rescale=0.5", ["guidance_rescale=0.5 does nothing at guidance_scale=1"]),
        ("guide={whole}", ["is the network itself: take an earlier guide_checkpoint"]),
        ("guide={whole} guide_checkpoint=3 guidance_scale=1", ["does nothing at guidance_scale=1, which"]),
        ("guide_checkpoint=3", ["guide_checkpoint=3: of no run, add guide=<run>"]),
        ("guide={whole} guide_checkpoint=4", ["has no checkpoint '4'; there are last, best and steps 3, 6"]),
        ("guide=nowhere", ["nowhere: no such folder"]),
        (
            "guide={other}",
            ["prediction_type=epsilon, the run v_prediction: both", "data.image_size=16, the run 8: both"],
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
    assert printed.count("no classes to guide by; guide=<run> guides by a worse network") == 2
    run("sample", *words, f"guide={runs / 'plain'}", "guide_checkpoint=3", "guidance_scale=2", cwd=tmp_path)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["guidance_scale"] == 2
