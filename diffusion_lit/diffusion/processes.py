"""Processes whose time is a number and not a row of a table: flow matching and EDM."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from diffusion_lit.diffusion.schedules import NoiseTable, Process
from diffusion_lit.diffusion.timesteps import BELOW_1

ABOVE_0 = 2**-25  # at no noise at all an output counts nothing, and there is no target


@dataclass(frozen=True)
class Flow(Process):
    """x_t = (1 - t) x0 + t eps for t in (0, 1]: the straight way from image to noise (Lipman et al. 2023, Liu et al.
    2023), time counted towards noise as everywhere here. t is float32, and its own noise level.
    """

    process, title = "flow", "flow matching"

    @cached_property
    def times(self) -> Tensor:
        return torch.arange(1, self.num_train_timesteps + 1) / self.num_train_timesteps

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = _precise(t)
        return 1 - t, t

    def draw(self, u: Tensor) -> Tensor:
        return self.share(u).float().clamp(ABOVE_0, BELOW_1)

    def time_input(self, t: Tensor) -> Tensor:
        """1000 t, so that networks are told numbers of the size that they know from timesteps."""
        return 1000 * t


@dataclass(frozen=True)
class EDM(Process):
    """x_t = x0 + sigma eps, variance exploding (Karras et al. 2022); t is sigma itself, float32.

    With timestep_sampling=logit_normal log sigma is normal of `sampling_mean` and `sampling_std`, P_mean and P_std in
    the paper's table 1; with uniform sigma / (1 + sigma) is uniform.

    Args:
        sigma_min, sigma_max: the range of samplers, with levels spaced by the paper's eq. 5 of rho 7.
        sigma_data: standard deviation of the images.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5

    process, title = "edm", "EDM"

    @cached_property
    def times(self) -> Tensor:
        ends = self.sigma_min ** (1 / 7), self.sigma_max ** (1 / 7)
        return (torch.linspace(*ends, self.num_train_timesteps, dtype=torch.float64) ** 7).float()

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = _precise(t)
        return torch.ones_like(t), t

    def draw(self, u: Tensor) -> Tensor:
        share = self.share(u).clamp(ABOVE_0, BELOW_1)
        return (share / (1 - share)).float()

    def time_input(self, t: Tensor) -> Tensor:
        """1000 c_noise, c_noise = log(sigma) / 4 (table 1), for networks that know timesteps of some hundreds."""
        return 250 * t.log()


def _precise(t: Tensor) -> Tensor:
    """float64, where the device has it."""
    return t if t.is_mps else t.double()


PROCESSES = {kind.process: kind for kind in (NoiseTable, Flow, EDM)}
