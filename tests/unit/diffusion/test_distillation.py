"""Distillation against diffusers' DDIM, and on Gaussian data, where the map of a perfect teacher is known."""

import math

import pytest
import torch
from diffusers import DDIMScheduler

from diffusion_lit.diffusion.distillation import Distillation, DistillationLevels
from diffusion_lit.diffusion.loss import Diffusion
from diffusion_lit.diffusion.processes import EDM, FlowMatching
from diffusion_lit.diffusion.schedules import DiscreteProcess
from diffusion_lit.diffusion.weighting import TruncatedSNR
from diffusion_lit.sampling.generate import generate
from diffusion_lit.sampling.samplers import finite_betas, scheduler_times
from tests.cases import each
from tests.sampled import sampler_of

LINEAR, COSINE, ZERO = (
    DiscreteProcess(beta_schedule="linear"), DiscreteProcess(), DiscreteProcess(zero_terminal_snr=True),
)  # fmt: skip
PAIRS = [
    (COSINE, "v_prediction"), (LINEAR, "epsilon"), (ZERO, "sample"), (FlowMatching(), "velocity"), (EDM(), "edm"),
]  # fmt: skip
every_pair = each(("process", "prediction"), PAIRS, ids=["cosine-v", "linear-epsilon", "zero-sample", "flow", "edm"])
SHAPE, MEAN, VARIANCE = (1, 4, 4), 0.1, 0.04


def time_of(process, time_input):
    """The time that a network was given, as the process counts it."""
    if process.is_discrete:
        return time_input
    return time_input / 1000 if process.name == "flow" else (time_input / 250).exp()


def as_network(diffusion: Diffusion, estimate):
    """A network whose estimate of x0 is estimate(x_t, t, y)."""

    def net(x, time_input, y):
        t = time_of(diffusion.process, time_input)
        c = diffusion.coefficients(t)
        c_in, c_skip, c_out = (value[:, None, None, None].double() for value in (c.c_in, c.c_skip, c.c_out))
        x_t = x.double() / c_in
        return (estimate(x_t, t, y) - c_skip * x_t) / c_out

    return net


def odd_teacher(diffusion: Diffusion):
    """A teacher whose estimates depend on image, time and condition in no simple way."""
    return as_network(
        diffusion, lambda x, t, y: (0.7 * x + 0.3 * y[:, None, None, None] + t[:, None, None, None]).sin()
    )


def gain(process, start: torch.Tensor, end: torch.Tensor | None) -> torch.Tensor:
    """Factor on x - alpha MEAN of an exact DDIM step on Gaussian data; `end` None is the clean image."""
    alpha, sigma = process.alpha_sigma(start)
    end_alpha, end_sigma = process.alpha_sigma(end) if end is not None else (torch.ones(()), torch.zeros(()))
    return (end_alpha * alpha * VARIANCE + end_sigma * sigma) / (alpha**2 * VARIANCE + sigma**2)


def exact_map(levels: DistillationLevels, process, k: int) -> float:
    """The factor of all steps of a perfect teacher from level k to the end of its step of the student."""
    end = k - 2
    ends = [levels.times[j - 1] if j > 1 else None for j in range(k, end, -1)]
    return math.prod(float(gain(process, levels.times[j], to)) for j, to in zip(range(k, end, -1), ends, strict=True))


def perfect_student(diffusion: Diffusion, levels: DistillationLevels):
    """The student that arrives where all steps of a perfect teacher do: the oracle of the whole stage."""

    def estimate(x, t, y):
        k = [int((levels.times[1:] - one).abs().argmin()) + 1 for one in t]
        end = [one - 2 for one in k]
        alpha, sigma = levels.alpha[k].view(-1, 1, 1, 1), levels.sigma[k].view(-1, 1, 1, 1)
        end_alpha, end_sigma = levels.alpha[end].view(-1, 1, 1, 1), levels.sigma[end].view(-1, 1, 1, 1)
        whole = torch.tensor([exact_map(levels, diffusion.process, one) for one in k]).view(-1, 1, 1, 1)
        x_end = end_alpha * MEAN + whole * (x - alpha * MEAN)
        return (x_end - end_sigma / sigma * x) / (end_alpha - end_sigma / sigma * alpha)

    return as_network(diffusion, estimate)


def perfect_teacher(diffusion: Diffusion):
    """The posterior mean of x0."""

    def estimate(x, t, y):
        alpha, sigma = (value.view(-1, 1, 1, 1) for value in diffusion.process.alpha_sigma(t))
        return MEAN + alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2) * (x - alpha * MEAN)

    return as_network(diffusion, estimate)


def noisy(levels: DistillationLevels, k: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, len(k), *SHAPE, generator=generator)
    return levels.add_noise(MEAN + math.sqrt(VARIANCE) * x0, k, eps)


@every_pair
def test_the_levels_are_those_of_trailing_ddim(process, prediction):
    for steps in (1, 2, 3, 4, 8, 10, 16, 25, 50, 64):
        scheduler = sampler_of("ddim", steps=steps).build_scheduler(process)
        levels = DistillationLevels(process, steps)
        assert torch.equal(levels.student_times, scheduler_times(scheduler, process).flip(0)), steps
        assert levels.find(levels.student_times).tolist() == list(range(2, 2 * steps + 1, 2))


@each("clip_x0", [False, True])
@each("steps", [1, 4])
def test_the_target_arrives_where_two_ddim_steps_of_diffusers_do(steps, clip_x0):
    for process, prediction in PAIRS[:3]:
        diffusion = Diffusion(process, prediction, TruncatedSNR())
        levels, net, k = DistillationLevels(process, steps), odd_teacher(diffusion), 2 * torch.arange(1, steps + 1)
        scheduler = DDIMScheduler(
            trained_betas=finite_betas(process).numpy(), timestep_spacing="trailing", prediction_type="sample",
            clip_sample=clip_x0,
        )  # fmt: skip
        scheduler.set_timesteps(2 * steps)
        x_t, y = noisy(levels, k), torch.arange(steps)
        x0 = Distillation(diffusion, levels, net, clip_x0).target(x_t, k, y)
        for j in range(steps):
            x = x_t[j : j + 1]
            for t in scheduler.timesteps.flip(0)[2 * j : 2 * j + 2].flip(0):
                out = diffusion.output(net, x, t[None], y[j : j + 1])
                x = scheduler.step(diffusion.estimate_x0(out, x, t[None]), t, x, use_clipped_model_output=True)[0]
            start, end = k[j : j + 1], k[j : j + 1] - 2
            arrived = levels.ddim_step(x_t[j : j + 1], x0[j : j + 1], start, end)
            torch.testing.assert_close(arrived, x, rtol=0, atol=5e-4 if process is ZERO else 2e-5)


@every_pair
def test_a_perfect_teacher_has_its_exact_map_as_the_student_without_loss(process, prediction):
    diffusion = Diffusion(process, prediction, TruncatedSNR(20.0))
    levels = DistillationLevels(process, 2)
    teacher, student = perfect_teacher(diffusion), perfect_student(diffusion, levels)
    k = levels.draw((torch.arange(64) + 0.5) / 64)
    assert k.tolist() == [2] * 32 + [4] * 32
    distillation = Distillation(diffusion, levels, teacher, False)
    x0, eps = torch.randn(2, 64, *SHAPE, generator=torch.Generator().manual_seed(1))
    y = torch.zeros(64, dtype=torch.int64)
    assert distillation.loss(student, 0.2 * x0 + MEAN, k, eps, y).max() < 1e-5
    other = as_network(diffusion, lambda x, t, y: torch.zeros_like(x))
    assert distillation.loss(other, 0.2 * x0 + MEAN, k, eps, y).min() > 1e-3  # of any other student it is not 0


@every_pair
def test_a_perfect_student_samples_what_its_teacher_does_in_more_steps(process, prediction):
    diffusion, levels = Diffusion(process, prediction, TruncatedSNR()), DistillationLevels(process, 2)
    images = {}
    for steps, net in ((4, perfect_teacher(diffusion)), (2, perfect_student(diffusion, levels))):
        sampler = sampler_of("ddim", steps=steps, batch_size=4, clip_x0=False)
        images[steps] = generate(net, diffusion, sampler, [0] * 4, range(4), SHAPE)
    torch.testing.assert_close(images[2], images[4], rtol=0, atol=2e-3 if process.name == "flow" else 1e-4)


def test_the_truncated_snr_has_a_maximum_if_it_is_asked_for():
    snr, gain = torch.tensor([1e-3, 2.0, 100.0]), torch.tensor([2.0, 1.0, 0.5])
    assert TruncatedSNR()(snr, gain).tolist() == [2, 2, 50]
    assert TruncatedSNR(20.0)(snr, gain).tolist() == [2, 2, 10]
    assert pytest.approx(TruncatedSNR(1.0)(snr, gain).tolist()) == [2, 1, 0.5]
