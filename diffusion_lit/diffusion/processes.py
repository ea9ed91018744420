"""The diffusion processes by name, and the two of continuous time: flow matching and EDM.

To add a process, subclass `Process` of `diffusion_lit.diffusion.schedules` and add
it to `PROCESSES`.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from diffusion_lit.diffusion.schedules import DiscreteProcess, Process
from diffusion_lit.diffusion.timesteps import BELOW_1

ABOVE_0 = 2**-25  # without any noise c_out is 0, and the network has no target


@dataclass(frozen=True)
class FlowMatching(Process):
    """x_t = (1 - t) x0 + t eps for t in (0, 1], t float32 (Lipman et al. 2023; Liu et al. 2023).

    Time counts towards noise, as in all processes here.
    """

    name, title = "flow", "flow matching"

    @cached_property
    def times(self) -> Tensor:
        """Return 1/T, 2/T, ..., 1."""
        return torch.arange(1, self.num_train_timesteps + 1) / self.num_train_timesteps

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (1 - t, t)."""
        t = _to_float64(t)
        return 1 - t, t

    def sample_times(self, u: Tensor) -> Tensor:
        """Return times in (0, 1) of uniform numbers in [0, 1), (B,) both."""
        return self.sample_fraction(u).float().clamp(ABOVE_0, BELOW_1)

    def time_input(self, t: Tensor) -> Tensor:
        """Return 1000 t, in the range of the timesteps that networks are designed for."""
        return 1000 * t


@dataclass(frozen=True)
class EDM(Process):
    """x_t = x0 + sigma eps, variance exploding; t is sigma itself, float32 (Karras et al. 2022).

    With `timestep_distribution=logit_normal`, log sigma is normal with `logit_mean`
    and `logit_std` (P_mean and P_std of the paper's table 1). With
    `timestep_distribution=uniform`, sigma / (1 + sigma) is uniform.

    Args:
        sigma_min: smallest noise level of samplers.
        sigma_max: largest noise level of samplers.
        sigma_data: standard deviation of the images.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5

    name, title = "edm", "EDM"

    @cached_property
    def times(self) -> Tensor:
        """Return levels from sigma_min to sigma_max, spaced evenly in sigma^(1/7) (eq. 5, rho = 7)."""
        ends = self.sigma_min ** (1 / 7), self.sigma_max ** (1 / 7)
        return (torch.linspace(*ends, self.num_train_timesteps, dtype=torch.float64) ** 7).float()

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (1, t)."""
        t = _to_float64(t)
        return torch.ones_like(t), t

    def sample_times(self, u: Tensor) -> Tensor:
        """Return noise levels above 0 of uniform numbers in [0, 1), (B,) both."""
        fraction = self.sample_fraction(u).clamp(ABOVE_0, BELOW_1)
        return (fraction / (1 - fraction)).float()

    def time_input(self, t: Tensor) -> Tensor:
        """Return 1000 c_noise, c_noise = log(sigma) / 4 (table 1), in the range of timesteps."""
        return 250 * t.log()


def _to_float64(t: Tensor) -> Tensor:
    """Return t in float64, except on MPS, which has none."""
    return t if t.is_mps else t.double()


PROCESSES = {process.name: process for process in (DiscreteProcess, FlowMatching, EDM)}
