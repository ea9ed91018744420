"""Distillation into few steps: what a student of n DDIM steps learns from a teacher that takes more.

Levels count from 0, the clean image, to N, the noisiest one; N are those of a
teacher of N steps, and every second one is one of the student. They are the
timesteps of DDIM with `timestep_spacing=trailing`; where T k / N lies in the middle
of two timesteps, diffusers may round to the other one. The student learns to go in
one step to its next level, where its teacher arrives in two (Salimans & Ho
2022, algorithm 2).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_lit.diffusion.loss import Diffusion, Network
from diffusion_lit.diffusion.schedules import Process


class DistillationLevels:
    """The levels of a teacher of 2 x `steps` DDIM steps, of which a student has every second one.

    Attributes:
        times: time of each level, (N + 1,); that of level 0 is never used.
        student_times: times of the student's levels, ascending, (steps,).

    Args:
        process: of teacher and student.
        steps: of the student.
        device: of the images.
    """

    def __init__(self, process: Process, steps: int, device: torch.device | str = "cpu"):
        self.steps, count = steps, 2 * steps
        index = [0, *[max(0, round(len(process.times) * k / count) - 1) for k in range(1, count + 1)]]
        times = process.times[index]
        alpha, sigma = process.alpha_sigma(times)
        alpha[0], sigma[0] = 1, 0
        self.alpha, self.sigma = alpha, sigma
        self.table = torch.stack([alpha, sigma, alpha / sigma]).float().to(device)  # no step waits for a copy
        self.times = times.to(device)
        self.student_times = self.times[2::2].contiguous()

    def find(self, t: Tensor) -> Tensor:
        """Return the levels of times t (B,) of the student, int64 (B,)."""
        return (torch.searchsorted(self.student_times, t.contiguous()) + 1) * 2

    def draw(self, u: Tensor) -> Tensor:
        """Return levels of the student, int64 (B,), for uniform numbers u (B,) in [0, 1)."""
        return ((u * self.steps).long() + 1) * 2

    def add_noise(self, x0: Tensor, k: Tensor, eps: Tensor) -> Tensor:
        """Return alpha x0 + sigma eps, (B, C, H, W), at levels k (B,)."""
        alpha, sigma = self._coefficients(k)
        return alpha * x0 + sigma * eps

    def ddim_step(self, x: Tensor, x0: Tensor, start: Tensor, end: Tensor) -> Tensor:
        """Return x at level `end`, (B, C, H, W): a deterministic step of DDIM (Song et al. 2021, eq. 12).

        Args:
            x: at level `start`, (B, C, H, W).
            x0: estimate of the clean image, (B, C, H, W).
            start: levels, (B,).
            end: lower levels, (B,).
        """
        (alpha, sigma), (end_alpha, end_sigma) = self._coefficients(start), self._coefficients(end)
        return end_alpha * x0 + end_sigma / sigma * (x - alpha * x0)

    def second_share(self, start: Tensor, middle: Tensor, end: Tensor) -> Tensor:
        """Return the share of the second estimate of x0 in that of one step over both, (B, 1, 1, 1).

        A step adds (r_end - r_start) x0 to x / sigma, r = alpha / sigma. So one step
        from `start` to `end` arrives where two do if its x0 is their mean, weighted by
        the growth of r: the target of Salimans & Ho 2022, appendix G, without its
        difference of nearly equal numbers.
        """
        r = self.table[2]
        share = (r[end] - r[middle]) / (r[end] - r[start])
        return torch.where(end == 0, 1.0, share)[:, None, None, None]  # r is infinite there

    def _coefficients(self, k: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma, _ = self.table[:, k, None, None, None]
        return alpha, sigma


@dataclass(frozen=True)
class Distillation:
    """The target and the loss of a student: one of its steps against two of its teacher.

    Args:
        diffusion: process, prediction type and weighting of teacher and student.
        levels: of both.
        teacher: of the stage.
        clip_x0: clip its estimates of x0 to [-1, 1], as the sampler does.
        guide: returns the teacher with its guidance at levels k (B,), where that depends on them.
    """

    diffusion: Diffusion
    levels: DistillationLevels
    teacher: Network
    clip_x0: bool = True
    guide: Callable[[Tensor], Network] | None = None

    @torch.no_grad()
    def target(self, x: Tensor, k: Tensor, y: Tensor) -> Tensor:
        """Return the x0 with which one DDIM step from levels k (B,) arrives where the teacher does, (B, C, H, W)."""
        levels, middle, end = self.levels, k - 1, k - 2
        first = self._estimate(x, k, y)
        x_middle = levels.ddim_step(x, first, k, middle)
        second = self._estimate(x_middle, middle, y)
        return torch.lerp(first, second, levels.second_share(k, middle, end))

    def error(self, net: Network, x0: Tensor, k: Tensor, eps: Tensor, y: Tensor) -> Tensor:
        """Return the unweighted mean error of each image's output against the target, (B,).

        Args:
            net: the student.
            x0: clean images, (B, C, H, W).
            k: levels, (B,).
            eps: unit Gaussian noise, (B, C, H, W).
            y: condition, (B, ...).
        """
        x, t = self.levels.add_noise(x0, k, eps), self.levels.times[k]
        c, target = self.diffusion.coefficients(t), self.target(x, k, y)
        target = (target - c.c_skip[:, None, None, None] * x) / c.c_out[:, None, None, None]
        return self.diffusion.pointwise_loss(self.diffusion.output(net, x, t, y) - target).flatten(1).mean(1)

    def loss(self, net: Network, x0: Tensor, k: Tensor, eps: Tensor, y: Tensor) -> Tensor:
        """Return the weighted loss of each image, (B,); for the arguments see `error`."""
        return self.diffusion.coefficients(self.levels.times[k]).weight * self.error(net, x0, k, eps, y)

    def _estimate(self, x: Tensor, k: Tensor, y: Tensor) -> Tensor:
        net, t = self.guide(k) if self.guide else self.teacher, self.levels.times[k]
        x0 = self.diffusion.estimate_x0(self.diffusion.output(net, x, t, y), x, t)
        return x0.clamp(-1, 1) if self.clip_x0 else x0
