"""The discrete process against diffusers and published numbers, and that it keeps the variance of an image."""

import math

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from diffusers.training_utils import compute_snr

from diffusion_lit.diffusion.loss import Diffusion
from diffusion_lit.diffusion.schedules import BETA_SCHEDULES, DiscreteProcess
from diffusion_lit.diffusion.weighting import Uniform
from tests.cases import each

THEIR_NAME = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
SCHEDULES = sorted(THEIR_NAME)
every_table = each(
    "process",
    [DiscreteProcess(beta_schedule=name, zero_terminal_snr=zero) for name in BETA_SCHEDULES for zero in (False, True)],
    ids=lambda process: f"{process.beta_schedule}{'-zero' * process.zero_terminal_snr}",
)


def diffusers_scheduler(process: DiscreteProcess) -> DDPMScheduler:
    return DDPMScheduler(
        num_train_timesteps=process.num_train_timesteps,
        beta_schedule=THEIR_NAME[process.beta_schedule],
        beta_start=process.beta_start,
        beta_end=process.beta_end,
        rescale_betas_zero_snr=process.zero_terminal_snr,
    )


def test_every_schedule_is_checked_here():
    assert set(THEIR_NAME) | {"cosine_clipped", "linear_one_based"} == set(BETA_SCHEDULES)


def test_the_clipped_cosine_is_that_of_simple_diffusion():
    process = DiscreteProcess(beta_schedule="cosine_clipped")
    # squared cosines at the T + 1 ends of the timesteps, one minus their ratios, clipped
    signal = [math.cos((k / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for k in range(1001)]
    expected = [min(max(1 - signal[k + 1] / signal[k], 1e-4), 0.02) for k in range(1000)]
    torch.testing.assert_close(process.betas, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=0)
    # computed elsewhere from their code: how much is clipped, and what is left at the end
    assert (process.betas == 0.02).sum() == 98
    assert (process.betas[902:] == 0.02).all()
    assert (process.betas == 1e-4).sum() == 13
    assert f"{process.alpha_bar[-1]:.2g} {process.alpha[980]:.2g}" == "0.0032 0.068"
    assert (DiscreteProcess(100, "cosine_clipped", 0.01, 0.3).betas.aminmax()) == (0.01, 0.3)


@pytest.mark.parametrize(("num", "start", "end"), [(500, 1e-3, 0.02), (1500, 1e-3, 0.02), (2, 0.1, 0.2)])
def test_the_one_based_schedule_is_that_of_the_sprites(num, start, end):
    # their lines, with timesteps 1..T; their alpha_bar of timestep 0 is 1
    b_t = (end - start) * torch.linspace(0, 1, num + 1, dtype=torch.float64) + start
    ab_t = torch.cumsum((1 - b_t).log(), dim=0).exp()
    ab_t[0] = 1
    process = DiscreteProcess(num, "linear_one_based", start, end)
    assert len(process.betas) == num
    torch.testing.assert_close(process.alpha_bar, ab_t[1:], rtol=1e-10, atol=0)
    torch.testing.assert_close(process.betas[1:], b_t[2:], rtol=1e-10, atol=0)
    if num == 500:
        assert f"{process.alpha_bar[-1]:.2g}" == "0.005"


@each("schedule", SCHEDULES)
@each(("num", "start", "end"), [(1000, 1e-4, 0.02), (1000, 0.00085, 0.012), (250, 1e-3, 0.05)])
def test_betas_and_cumulative_products_equal_those_of_diffusers(schedule, num, start, end):
    process = DiscreteProcess(num, schedule, start, end)
    theirs = diffusers_scheduler(process)
    torch.testing.assert_close(process.betas.float(), theirs.betas, rtol=2e-6, atol=1e-8)
    torch.testing.assert_close(process.alpha_bar.float(), theirs.alphas_cumprod, rtol=0, atol=1e-6)
    # Their product in float64, so that the noisy end is compared in relative terms too: it is 4e-5 there, or 2e-9. The
    # capped last cosine beta, 0.999 in float32, leaves 1 - beta with 5 digits.
    products = (1 - theirs.betas.double()).cumprod(0)
    torch.testing.assert_close(process.alpha_bar, products, rtol=5e-5, atol=0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_snr_equals_that_of_diffusers(schedule):
    process = DiscreteProcess(beta_schedule=schedule)
    t = torch.arange(1000)
    # 1 - alpha_bar is about 1e-4 at t = 0, where float32 leaves their value three to four digits
    torch.testing.assert_close(
        process.snr.float(), compute_snr(diffusers_scheduler(process), t), rtol=2e-3, atol=0, check_dtype=False
    )


@pytest.mark.parametrize(
    ("schedule", "known"),
    [
        ("linear", {0: "9999", 10: "455", 499: "0.085", 999: "4.0e-05"}),
        ("cosine", {0: "24221", 10: "1386", 499: "0.976", 999: "2.4e-09"}),
    ],
)
def test_snr_has_the_known_values(schedule, known):
    # computed elsewhere, with diffusers, and written down to these digits; t = 499 is where half the timesteps are done
    snr = DiscreteProcess(beta_schedule=schedule).snr
    for t, text in known.items():
        digits = len(text.split("e")[0].replace(".", "").lstrip("0"))
        assert f"{snr[t].item():#.{digits}g}".rstrip(".") == text


@every_table
def test_alpha_and_sigma_keep_the_variance_and_signal_only_falls(process):
    torch.testing.assert_close(process.alpha**2 + process.sigma**2, torch.ones(1000, dtype=torch.float64))
    assert (process.alpha_bar.diff() < 0).all()
    assert (process.snr.diff() < 0).all()
    assert 0.999 < process.alpha_bar[0] < 1
    assert process.alpha_bar[-1] >= 0
    assert (process.sigma > 0).all()


@every_table
def test_unit_variance_images_stay_unit_variance_at_every_timestep(process):
    # x0 and eps of exactly zero mean, unit variance and no correlation, so the answer is exact and not statistical.
    # With 1 - alpha_bar in place of its root the variance would sink to 0.75.
    x0 = torch.tensor([1.0, -1.0, 1.0, -1.0]).view(1, 1, 2, 2)
    eps = torch.tensor([1.0, 1.0, -1.0, -1.0]).view(1, 1, 2, 2)
    t = torch.arange(1000)
    diffusion = Diffusion(process, "v_prediction", Uniform())
    x_t = diffusion.add_noise(x0.expand(1000, -1, -1, -1), t, eps.expand(1000, -1, -1, -1))
    torch.testing.assert_close(x_t.square().mean((1, 2, 3)), torch.ones(1000), rtol=0, atol=1e-6)
    # and the signal in it is alpha, not some other split of the unit variance
    torch.testing.assert_close((x_t * x0).mean((1, 2, 3)), process.alpha.float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_noisy_images_equal_those_of_diffusers(schedule):
    process = DiscreteProcess(beta_schedule=schedule)
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.rand(500, 3, 4, 4, generator=generator) * 2 - 1, torch.randn(500, 3, 4, 4, generator=generator)
    t = torch.arange(0, 1000, 2)
    ours = Diffusion(process, "v_prediction", Uniform()).add_noise(x0, t, eps)
    torch.testing.assert_close(ours, diffusers_scheduler(process).add_noise(x0, eps, t), rtol=0, atol=2e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_zero_terminal_snr_ends_in_pure_noise_and_leaves_the_start_alone(schedule):
    plain, zero = (
        DiscreteProcess(beta_schedule=schedule),
        DiscreteProcess(beta_schedule=schedule, zero_terminal_snr=True),
    )
    assert zero.alpha[-1] == 0
    assert zero.sigma[-1] == 1
    assert zero.snr[-1] == 0
    assert zero.alpha[0].item() == pytest.approx(plain.alpha[0].item(), rel=1e-12)
    theirs = rescale_zero_terminal_snr(plain.betas)  # their code in float64
    torch.testing.assert_close(zero.betas, theirs, rtol=0, atol=1e-12)
    torch.testing.assert_close(zero.alpha_bar.float(), diffusers_scheduler(zero).alphas_cumprod, rtol=0, atol=2e-6)


@each("num", [2, 7, 1000, 1025, 4097])
def test_every_timestep_is_drawn_equally_often_and_none_past_the_end(num):
    process = DiscreteProcess(num_train_timesteps=num)
    u = (torch.arange(num * 4, dtype=torch.float64) + 0.5) / (num * 4)  # four numbers in the middle of each share
    counts = torch.bincount(process.sample_times(u.float()), minlength=num)
    assert counts.tolist() == [4] * num
    # torch.rand gives no number past the largest float32 below 1
    assert process.sample_times(torch.tensor([0.0, 1 - 2**-24])).tolist() == [0, num - 1]
