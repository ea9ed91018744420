"""The validation losses of networks whose errors are known."""

import math

import numpy as np
import pytest
import torch

from diffusion_lit.diffusion.loss import Diffusion
from diffusion_lit.diffusion.processes import EDM, FlowMatching
from diffusion_lit.diffusion.schedules import DiscreteProcess
from diffusion_lit.diffusion.weighting import Uniform
from diffusion_lit.system.errors import ConfigError
from diffusion_lit.training.noise_levels import BINS, GRAY_LEVEL, ValidationLevels, bound_reconstruction
from diffusion_lit.training.validation_metric import LossByNoiseLevel
from tests.cases import each

PROCESSES = [
    (DiscreteProcess(), "v_prediction"),
    (DiscreteProcess(beta_schedule="linear"), "epsilon"),
    (DiscreteProcess(zero_terminal_snr=True), "sample"),
    (FlowMatching(), "velocity"),
    (EDM(), "edm"),
]


@each(("process", "prediction"), [
    (EDM(sigma_max=0.003), "edm"), (DiscreteProcess(beta_schedule="linear", beta_start=1e-9, beta_end=1e-8), "epsilon"),
])  # fmt: skip
def test_a_process_without_visible_noise_is_refused(process, prediction):
    with pytest.raises(ConfigError, match="diffusion: no noise level reaches half a gray level"):
        ValidationLevels(Diffusion(process, prediction, Uniform()))


def measure_gaussian(process, prediction_type: str, variance: float) -> dict:
    """Return the losses of the best denoiser of pixels from N(0, v), x0_hat = v alpha x_t / (v alpha^2 + sigma^2)."""
    diffusion = Diffusion(process, prediction_type, Uniform())
    levels = ValidationLevels(diffusion)
    metric = LossByNoiseLevel(levels)
    generator = torch.Generator().manual_seed(0)
    for first in range(0, len(levels), 64):
        index = levels.indices_at(first, min(64, len(levels) - first))
        x0, eps = (torch.randn(len(index), 1, 40, 40, generator=generator) for _ in range(2))
        x0 = x0 * variance**0.5
        c = diffusion.coefficients(levels.t[index])
        alpha, sigma, c_skip, c_out = (value[:, None, None, None] for value in (c.alpha, c.sigma, c.c_skip, c.c_out))
        x_t = c.add_noise(x0, eps)
        best = variance * alpha * x_t / (variance * alpha**2 + sigma**2)
        error = ((best - c_skip * x_t) / c_out - c.target(x0, eps)).square().flatten(1).mean(1)
        metric.update(index, error, x0.square().flatten(1).mean(1))
    return metric.compute()


@pytest.mark.parametrize(("process", "prediction_type"), PROCESSES)
def test_bits_per_dim_of_gaussian_pixels_are_their_entropy(process, prediction_type):
    """The best denoiser reaches the entropy of 8-bit values, log2(sqrt(2 pi e v) / level), whatever the process."""
    for variance in (0.02, 0.1):
        entropy = math.log2(math.sqrt(2 * math.pi * math.e * variance) / GRAY_LEVEL)
        found = measure_gaussian(process, prediction_type, variance)["bits_per_dim"]
        assert found == pytest.approx(entropy, abs=0.03)


def test_the_error_is_the_mean_over_log_snr_from_minus_8_to_8():
    """The best denoiser of N(0, v) has the error v snr / (1 + v snr) of the noise."""
    for process, prediction_type in PROCESSES:
        log_snr = torch.linspace(-8, 8, 4001, dtype=torch.double)
        expected = (0.1 * log_snr.exp() / (1 + 0.1 * log_snr.exp())).mean().item()
        found = measure_gaussian(process, prediction_type, 0.1)
        assert found["error"] == pytest.approx(expected, rel=0.03)


def test_bins_that_a_process_does_not_reach_are_named():
    short = DiscreteProcess(num_train_timesteps=500, beta_schedule="linear")
    assert ValidationLevels(Diffusion(short, "epsilon", Uniform())).empty == ["-8_to_-6"]
    assert ValidationLevels(Diffusion(DiscreteProcess(), "epsilon", Uniform())).empty == []
    assert set(ValidationLevels(Diffusion(short, "epsilon", Uniform())).empty) < set(BINS)


def test_the_reconstruction_term_is_that_of_a_monte_carlo_estimate():
    generator = np.random.default_rng(0)
    values = np.arange(256) * GRAY_LEVEL - 1
    for sigma in (0.002, 0.004, 0.01, 0.03):
        x = values[generator.integers(60, 196, 4000)]
        z = x + sigma * generator.normal(size=4000)
        logits = -((z[:, None] - values) ** 2) / (2 * sigma**2)
        exact = np.logaddexp.reduce(logits, axis=1) + (z - x) ** 2 / (2 * sigma**2)
        assert bound_reconstruction(sigma) == pytest.approx(exact.mean(), abs=4 * exact.std() / 4000**0.5 + 1e-9)


def test_an_l1_loss_has_no_bound():
    diffusion = Diffusion(DiscreteProcess(), "epsilon", Uniform(), loss="l1")
    metric = LossByNoiseLevel(ValidationLevels(diffusion))
    metric.update(torch.arange(20), torch.ones(20), torch.ones(20))
    assert math.isnan(metric.compute()["bits_per_dim"])
