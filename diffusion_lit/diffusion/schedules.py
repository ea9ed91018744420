"""Noise levels: the base class of processes, and the discrete process with its beta schedules.

Notation of this package: x_t = alpha_t x0 + sigma_t eps; at small t an image is
nearly clean, at large t nearly pure noise; snr = alpha^2 / sigma^2. A process
defines alpha and sigma; the other processes are in
`diffusion_lit.diffusion.processes`. To add a beta schedule, write a function and
add it to `BETA_SCHEDULES`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from diffusion_lit.diffusion.timesteps import TIMESTEP_DISTRIBUTIONS


def linear_betas(num: int, start: float, end: float) -> Tensor:
    """Return `num` betas in equal steps, float64 (Ho et al. 2020, section 4)."""
    return torch.linspace(start, end, num, dtype=torch.float64)


def scaled_linear_betas(num: int, start: float, end: float) -> Tensor:
    """Return betas whose square roots are in equal steps (Rombach et al. 2022)."""
    return torch.linspace(start**0.5, end**0.5, num, dtype=torch.float64) ** 2


def cosine_betas(num: int, start: float, end: float) -> Tensor:
    """Return betas of alpha_bar = cos^2((t / T + 0.008) / 1.008 * pi / 2), at most 0.999.

    Nichol & Dhariwal 2021, eq. 17. `start` and `end` are not used.
    """
    time = torch.arange(num + 1, dtype=torch.float64) / num
    alpha_bar = torch.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)


def clipped_cosine_betas(num: int, start: float, end: float) -> Tensor:
    """Return the betas of `cosine_betas` clipped to [start, end] (simple-diffusion, F. Basara 2022).

    With the range of the linear schedules some signal is left at the last timestep.
    """
    return cosine_betas(num, start, end).clamp(start, end)


def one_based_linear_betas(num: int, start: float, end: float) -> Tensor:
    """Return betas in equal steps over T + 1 points 0..T, of which timesteps 1..T are used.

    S. Zhou, A. Ng: How Diffusion Models Work, 2023. There timestep 0 has no noise
    at all, and timestep 1 has that of points 0 and 1, alpha_bar_1 = (1 - beta_0)(1
    - beta_1). Timesteps here count from 0: index k is timestep k + 1 there.
    """
    betas = linear_betas(num + 1, start, end)
    return torch.cat([1 - (1 - betas[:1]) * (1 - betas[1:2]), betas[2:]])


BETA_SCHEDULES: dict[str, Callable[[int, float, float], Tensor]] = {
    "linear": linear_betas,
    "scaled_linear": scaled_linear_betas,
    "cosine": cosine_betas,
    "cosine_clipped": clipped_cosine_betas,
    "linear_one_based": one_based_linear_betas,
}


def rescale_to_zero_terminal_snr(betas: Tensor) -> Tensor:
    """Shift and scale sqrt(alpha_bar) so that the last timestep is pure noise (Lin et al. 2024, algorithm 1)."""
    root = (1 - betas).cumprod(0).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return _betas_of(root**2)


def _betas_of(alpha_bar: Tensor) -> Tensor:
    """Return betas such that alpha_bar is the cumulative product of 1 - beta."""
    return 1 - torch.cat([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]])


@dataclass(frozen=True, kw_only=True)
class Process:
    """The noise levels of a process, and how often training draws each of them.

    `times` (T,) are the levels that samplers step on and validation measures, from
    nearly clean to noisiest. Training draws from them if the process is discrete; a
    continuous process draws other times too. `alpha`, `sigma`, `snr`, `alpha_bar`
    and `betas` are float64 (T,) at these. They are computed once; do not change
    them in place. A subclass defines `times`, `alpha_sigma`, `sample_times` and
    `time_input`, and `name`, by which a sampler's `serves` lists it.

    Args:
        timestep_distribution: a key of
            `diffusion_lit.diffusion.timesteps.TIMESTEP_DISTRIBUTIONS`.
        logit_mean: mean of the logit, for the logit-normal distributions.
        logit_std: standard deviation of the logit, for the logit-normal
            distributions.
    """

    timestep_distribution: str = "uniform"
    logit_mean: float = 0.0
    logit_std: float = 1.0

    is_discrete = False  # True: t is an index of `times`
    num_train_timesteps = 1000  # T, the length of `times`; a key of the configuration only for DiscreteProcess
    sigma_data = 0.5  # standard deviation of the images, for prediction_type=edm

    @cached_property
    def times(self) -> Tensor:
        """Return the levels, (T,)."""
        raise NotImplementedError

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma, float64, at times of any shape."""
        raise NotImplementedError

    def sample_times(self, u: Tensor) -> Tensor:
        """Return times (B,) of uniform numbers u (B,) in [0, 1), distributed by `timestep_distribution`."""
        raise NotImplementedError

    def time_input(self, t: Tensor) -> Tensor:
        """Return what the network gets for times t (B,)."""
        raise NotImplementedError

    def sample_fraction(self, u: Tensor) -> Tensor:
        """Return fractions of the way from clean image to noise, in [0, 1), of uniform numbers u (B,)."""
        distribution = TIMESTEP_DISTRIBUTIONS[self.timestep_distribution]
        return distribution.fractions(u, self.logit_mean, self.logit_std)

    def num_strata(self, batch_size: int) -> int:
        """Return into how many strata a global batch splits [0, 1), with one u in each."""
        return batch_size if TIMESTEP_DISTRIBUTIONS[self.timestep_distribution].is_stratified else 1

    @cached_property
    def alpha(self) -> Tensor:
        """Return the signal levels."""
        return self.alpha_sigma(self.times)[0]

    @cached_property
    def sigma(self) -> Tensor:
        """Return the noise levels."""
        return self.alpha_sigma(self.times)[1]

    @cached_property
    def snr(self) -> Tensor:
        """Return alpha^2 / sigma^2."""
        return (self.alpha / self.sigma) ** 2

    @cached_property
    def alpha_bar(self) -> Tensor:
        """Return alpha^2 of x_t scaled to unit variance."""
        return self.alpha**2 / (self.alpha**2 + self.sigma**2)

    @cached_property
    def betas(self) -> Tensor:
        """Return the betas of the variance-preserving process of the same snr, for diffusers' schedulers."""
        return _betas_of(self.alpha_bar)

    @cached_property
    def density(self) -> Tensor:
        """Return T times the share of training draws that falls on each level, (T,), of mean 1.

        In continuous time the draws of a level are those between it and the level
        before.
        """
        levels, each = len(self.times), 64
        u = (torch.arange(levels * each, dtype=torch.float64) + 0.5) / (levels * each)
        level = torch.bucketize(self.sample_times(u), self.times).clamp(max=levels - 1)
        return torch.bincount(level, minlength=levels).double() / each


@dataclass(frozen=True)
class DiscreteProcess(Process):
    """The variance-preserving process of T timesteps, alpha^2 + sigma^2 = 1 (Ho et al. 2020).

    Args:
        num_train_timesteps: T.
        beta_schedule: a key of `BETA_SCHEDULES`.
        beta_start: first beta of the linear schedules, lower limit of clipped ones.
        beta_end: last beta of the linear schedules, upper limit of clipped ones.
        zero_terminal_snr: make the last timestep pure noise.
    """

    num_train_timesteps: int = 1000
    beta_schedule: str = "cosine"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    zero_terminal_snr: bool = False

    name = "discrete"
    is_discrete = True

    @property
    def title(self) -> str:
        """Return the description for log lines."""
        return f"{self.num_train_timesteps} timesteps, {self.beta_schedule} noise"

    @cached_property
    def times(self) -> Tensor:
        """Return the timesteps 0 to T - 1, int64."""
        return torch.arange(self.num_train_timesteps)

    @cached_property
    def betas(self) -> Tensor:
        """Return the betas of the schedule."""
        betas = BETA_SCHEDULES[self.beta_schedule](self.num_train_timesteps, self.beta_start, self.beta_end)
        return rescale_to_zero_terminal_snr(betas) if self.zero_terminal_snr else betas

    @cached_property
    def alpha_bar(self) -> Tensor:
        """Return alpha^2, the cumulative product of 1 - beta."""
        return (1 - self.betas).cumprod(0)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return sqrt(alpha_bar) and sqrt(1 - alpha_bar) at timesteps of any shape."""
        alpha_bar = self.alpha_bar[t]
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    def sample_times(self, u: Tensor) -> Tensor:
        """Return timesteps int64 (B,) of uniform numbers in [0, 1), (B,)."""
        return (self.sample_fraction(u) * self.num_train_timesteps).long()

    def time_input(self, t: Tensor) -> Tensor:
        """Return the timestep itself."""
        return t
