"""Guidance on Gaussians, where what it comes to is known, bit by bit where it is off, and as a command."""

import pytest
import torch
from diffusers.guiders.guider_utils import rescale_noise_cfg

from diffusion_lit.diffusion.conditions import ClassCondition
from diffusion_lit.diffusion.loss import Diffusion
from diffusion_lit.diffusion.schedules import DiscreteProcess
from diffusion_lit.diffusion.weighting import Uniform
from diffusion_lit.runs.build import guide_network
from diffusion_lit.sampling.generate import generate
from diffusion_lit.sampling.guidance import (
    GuidanceInterval,
    add_autoguidance,
    add_classifier_free_guidance,
    apply_guidance,
)
from tests.cases import each
from tests.sampled import COSINE, sampler_of, unet

PROCESSES = [COSINE, DiscreteProcess(beta_schedule="linear", zero_terminal_snr=True)]
MEANS = (0.15, -0.1, 0.05)  # of the pictures of class 0 and 1, and of all
SPREAD = 0.1


def share_of_noise(process: DiscreteProcess, t: int) -> float:
    return (process.sigma[t] / (process.sigma[t] + process.alpha[t])).item()


def gaussian(process: DiscreteProcess, mean_of):
    """The exact v of pictures whose every value is drawn around `mean_of(label, share of noise)`."""

    def net(x_t, t, y):
        a, s = process.alpha[t[0]], process.sigma[t[0]]
        means = [mean_of(label, share_of_noise(process, t[0])) for label in y.tolist()]
        mean = torch.tensor(means, dtype=torch.float64)[:, None, None, None]
        x0 = mean + a * SPREAD**2 / (a**2 * SPREAD**2 + s**2) * (x_t.double() - a * mean)
        eps = (x_t.double() - a * x0) / s
        return a * eps - s * x0  # in float64: what guidance does to it is compared to the last digits of float32

    return net


def images(net, process=COSINE, labels=(0, 1), sampler="ddim", **changes):
    sampler = sampler_of(sampler, **{"steps": 20, "batch_size": 2, "clip_x0": False, **changes})
    return generate(net, Diffusion(process, "v_prediction", Uniform()), sampler, labels, [5, 6], (1, 8, 8))


@each("scale", [0.0, 0.5, 2.0, 3.0])
@each("process", PROCESSES, ids=["cosine", "linear-zero"])
@each("interval", [None, (0.3, 0.7)])
def test_guided_gaussians_of_one_spread_are_gaussians_further_away(process, scale, interval):
    """The score of a Gaussian is linear in its mean: guided, it is that of the mean u + scale (c - u). The reference
    knows that mean and nothing of guidance."""
    net = gaussian(process, lambda label, share: MEANS[label])

    def further(label, share):
        inside = interval is None or interval[0] < share <= interval[1]
        return MEANS[2] + scale * (MEANS[label] - MEANS[2]) if inside else MEANS[label]

    settings = {"guidance_scale": scale, "guidance_interval": interval}
    expected = images(gaussian(process, further), process)
    torch.testing.assert_close(
        images(guide_network(net, ClassCondition(2), **settings), process), expected, rtol=0, atol=2e-6
    )
    assert (expected - images(net, process)).abs().max() > 0.005

    # the same from a guide that takes every picture for one of all, whatever the label, without a null label
    guide = gaussian(process, lambda label, share: MEANS[2])
    torch.testing.assert_close(
        images(guide_network(net, ClassCondition(2), **settings, guide=guide), process), expected, rtol=0, atol=2e-6
    )
    unlabeled = guide_network(net, ClassCondition(0), **settings, guide=guide)
    torch.testing.assert_close(images(unlabeled, process), expected, rtol=0, atol=2e-6)


@each("sampler", ["ddim", "ddpm", "dpmpp_2m"])
@each("process", PROCESSES, ids=["cosine", "linear-zero"])
def test_everywhere_is_plain_guidance_and_nowhere_is_none_to_the_bit(sampler, process):
    net, made = unet(), {}
    strong = add_classifier_free_guidance(net, ClassCondition(3), 3.0, 0.5)
    for name, model in {
        "plain": net,
        "guided": strong,
        "everywhere": GuidanceInterval(strong, net, (0, 1)),
        "nowhere": GuidanceInterval(strong, net, (0.5, 0.5)),
        "in the middle": GuidanceInterval(strong, net, (0.3, 0.7)),
    }.items():
        made[name] = images(model, process, sampler=sampler, steps=5, clip_x0=True)
    assert torch.equal(made["everywhere"], made["guided"])
    assert torch.equal(made["nowhere"], made["plain"])
    assert not torch.equal(made["in the middle"], made["plain"])
    assert not torch.equal(made["in the middle"], made["guided"])


def test_outside_the_interval_a_step_costs_one_evaluation():
    sizes = []

    def counting(x_t, t, y):
        sizes.append((share_of_noise(COSINE, t[0]), len(y)))
        return torch.zeros_like(x_t)

    images(guide_network(counting, ClassCondition(3), 2, [0.2, 0.8]))
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
    net = GuidanceInterval(marked, lambda x_t, t, y: torch.zeros_like(x_t), (low, high))
    generate(net, Diffusion(COSINE, prediction, Uniform()), sampler, [0], [0], (1, 2, 2))
    sigmas = 1 / COSINE.snr.sqrt()
    assert sorted(guided_at) == [t for t in range(1000) if 0.28 < sigmas[t] <= 5.42]


def test_scale_1_is_the_network_and_0_the_guide():
    net, guide = unet(), gaussian(COSINE, lambda label, share: 0)
    for classes in (0, 3):
        for scale, expected in ((1, net), (1.0, net), (0, guide)):
            condition = ClassCondition(classes)
            assert guide_network(net, condition, scale, guidance_rescale=0.7, guide=guide) is expected
    every = ClassCondition(3), 1, [0.2, 0.8]
    assert guide_network(net, *every, guide=guide) is guide_network(net, *every) is net


def test_rescaling_keeps_the_spread_as_published():
    """Against diffusers, whose function is the paper's equations 15 and 16."""
    generator = torch.Generator().manual_seed(0)
    u, c = (torch.randn(5, 3, 8, 8, generator=generator, dtype=torch.float64) * 2 + 1 for _ in range(2))
    plain = apply_guidance(u, c, 7.5, 0)
    torch.testing.assert_close(plain, u + 7.5 * (c - u))
    for share in (0.3, 0.7, 1.0):
        torch.testing.assert_close(apply_guidance(u, c, 7.5, share), rescale_noise_cfg(plain, c, share))
    spread = c.std(dim=(1, 2, 3))
    assert (plain.std(dim=(1, 2, 3)) > 3 * spread).all()
    torch.testing.assert_close(apply_guidance(u, c, 7.5, 1.0).std(dim=(1, 2, 3)), spread)
    zeros = torch.zeros_like(u)  # of a network whose last layer begins at zero
    assert torch.equal(apply_guidance(zeros, zeros, 7.5, 0.7), zeros)


def test_a_guide_is_asked_with_the_label_and_once():
    x, t, y = torch.randn(4, 1, 8, 8), torch.full((4,), 500), torch.tensor([0, 1, 2, 0])
    asked = []

    def guide(x_t, t, y):
        asked.append(y.tolist())
        return -x_t

    with torch.no_grad():
        out = add_autoguidance(unet(), guide, 2.5)(x, t, y)
        torch.testing.assert_close(out, -x + 2.5 * (unet()(x, t, y) + x), rtol=0, atol=1e-5)
    assert asked == [[0, 1, 2, 0]]
