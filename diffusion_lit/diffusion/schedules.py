"""Noise levels: how much signal and how much noise an image holds at each time.

Words and signs of this package: x_t = alpha_t x0 + sigma_t eps, small t is nearly clean, large t nearly pure noise,
snr = alpha^2 / sigma^2. A process says what alpha and sigma are; the discrete one is here, others in `continuous`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from diffusion_lit.diffusion.timesteps import TIMESTEP_SAMPLING


def linear(num: int, start: float, end: float) -> Tensor:
    """Betas in equal steps (Ho et al. 2020, section 4)."""
    return torch.linspace(start, end, num, dtype=torch.float64)


def scaled_linear(num: int, start: float, end: float) -> Tensor:
    """Square roots of the betas in equal steps (Rombach et al. 2022)."""
    return torch.linspace(start**0.5, end**0.5, num, dtype=torch.float64) ** 2


def cosine(num: int, start: float, end: float) -> Tensor:
    """alpha_bar = cos^2((t / T + 0.008) / 1.008 * pi / 2), betas capped at 0.999 (Nichol & Dhariwal 2021, eq. 17).

    `start` and `end` belong to the linear schedules and have no meaning here.
    """
    time = torch.arange(num + 1, dtype=torch.float64) / num
    alpha_bar = torch.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)


def cosine_clipped(num: int, start: float, end: float) -> Tensor:
    """The betas of `cosine` held in [start, end]: simple-diffusion's schedule (F. Basara 2022).

    With the range of the linear schedules noise is no longer cosine at the noisy end: some signal is left there.
    """
    return cosine(num, start, end).clamp(start, end)


def linear_one_based(num: int, start: float, end: float) -> Tensor:
    """Betas in equal steps over T + 1 points 0..T, of which timesteps 1..T are used (S. Zhou, A. Ng 2023).

    Timestep 1 already holds the noise of point 0, alpha_bar_1 = (1 - beta_0)(1 - beta_1), and no noise at all is
    timestep 0. Here timesteps count from 0: index k is their timestep k + 1.
    """
    betas = linear(num + 1, start, end)
    return torch.cat([1 - (1 - betas[:1]) * (1 - betas[1:2]), betas[2:]])


BETA_SCHEDULES: dict[str, Callable[[int, float, float], Tensor]] = {
    "linear": linear,
    "scaled_linear": scaled_linear,
    "cosine": cosine,
    "cosine_clipped": cosine_clipped,
    "linear_one_based": linear_one_based,
}


def rescale_to_zero_terminal_snr(betas: Tensor) -> Tensor:
    """Shift and scale sqrt(alpha_bar) so that the last timestep is pure noise (Lin et al. 2024, algorithm 1)."""
    root = (1 - betas).cumprod(0).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    alpha_bar = root**2
    return 1 - torch.cat([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]])


@dataclass(frozen=True, kw_only=True)
class Process:
    """How images become noise, and how often training looks where; the one place where noise levels come from.

    A process is continuous unless it says otherwise. `times` (T,) are the levels that samplers step on and measurements
    look at, from nearly clean to noisiest; `alpha`, `sigma`, `snr` and the others are float64 of shape (T,) at these,
    computed once: do not change them in place.

    Args:
        timestep_sampling: a name of `diffusion_lit.diffusion.timesteps`, with `sampling_mean` and `sampling_std`, of
            the logit, for those that have them.
    """

    timestep_sampling: str = "uniform"
    sampling_mean: float = 0.0
    sampling_std: float = 1.0

    num_train_timesteps = 1000  # T
    sigma_data = 0.5  # standard deviation of the images that prediction_type=edm reckons with

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha and sigma at times of any shape, float64."""
        raise NotImplementedError

    def draw(self, u: Tensor) -> Tensor:
        """Uniform numbers in [0, 1) of shape (B,) to times (B,), as often as `timestep_sampling` says."""
        raise NotImplementedError

    def rows(self, t: Tensor, tables: Tensor, evaluate: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """What `evaluate` makes of alpha and sigma at times (B,), shape (K, B); `tables` (K, T) is that of `times`."""
        return evaluate(*self.alpha_sigma(t))

    def share(self, u: Tensor) -> Tensor:
        return TIMESTEP_SAMPLING[self.timestep_sampling].shape(u, self.sampling_mean, self.sampling_std)

    def strata(self, batch: int) -> int:
        """Equal parts of [0, 1) that a global batch of so many images has a number in each of."""
        return batch if TIMESTEP_SAMPLING[self.timestep_sampling].stratified else 1

    @cached_property
    def alpha(self) -> Tensor:
        return self.alpha_sigma(self.times)[0]

    @cached_property
    def sigma(self) -> Tensor:
        return self.alpha_sigma(self.times)[1]

    @cached_property
    def snr(self) -> Tensor:
        return (self.alpha / self.sigma) ** 2

    @cached_property
    def alpha_bar(self) -> Tensor:
        """alpha^2 of x_t scaled to unit variance."""
        return self.alpha**2 / (self.alpha**2 + self.sigma**2)

    @cached_property
    def betas(self) -> Tensor:
        """Of the variance-preserving process with these levels, which is how diffusers' schedulers are told them."""
        return 1 - torch.cat([self.alpha_bar[:1], self.alpha_bar[1:] / self.alpha_bar[:-1]])

    @cached_property
    def density(self) -> Tensor:
        """How often training draws each of the T levels, or a time between it and the one before; of mean 1."""
        levels, each = len(self.times), 64
        u = (torch.arange(levels * each, dtype=torch.float64) + 0.5) / (levels * each)
        level = torch.bucketize(self.draw(u), self.times).clamp(max=levels - 1)
        return torch.bincount(level, minlength=levels).double() / each


@dataclass(frozen=True)
class NoiseTable(Process):
    """The discrete variance-preserving process, alpha^2 + sigma^2 = 1; fields are the keys of `conf/diffusion`."""

    num_train_timesteps: int = 1000
    beta_schedule: str = "cosine"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    zero_terminal_snr: bool = False

    process = "discrete"  # what a sampler's `serves` must name

    @property
    def title(self) -> str:
        return f"{self.num_train_timesteps} timesteps, {self.beta_schedule} noise"

    @cached_property
    def times(self) -> Tensor:
        return torch.arange(self.num_train_timesteps)

    @cached_property
    def betas(self) -> Tensor:
        betas = BETA_SCHEDULES[self.beta_schedule](self.num_train_timesteps, self.beta_start, self.beta_end)
        return rescale_to_zero_terminal_snr(betas) if self.zero_terminal_snr else betas

    @cached_property
    def alpha_bar(self) -> Tensor:
        """alpha^2, the cumulative product of 1 - beta."""
        return (1 - self.betas).cumprod(0)

    @cached_property
    def alpha(self) -> Tensor:
        return self.alpha_bar.sqrt()

    @cached_property
    def sigma(self) -> Tensor:
        return (1 - self.alpha_bar).sqrt()

    @cached_property
    def snr(self) -> Tensor:
        return self.alpha_bar / (1 - self.alpha_bar)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.alpha[t], self.sigma[t]

    def rows(self, t: Tensor, tables: Tensor, evaluate: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        return tables[:, t]

    def draw(self, u: Tensor) -> Tensor:
        """Uniform numbers in [0, 1) of shape (B,) to timesteps int64 (B,), by default each equally likely."""
        return (self.share(u) * self.num_train_timesteps).long()

    def time_input(self, t: Tensor) -> Tensor:
        """What the network is told about timestep t: the timestep itself."""
        return t
