"""Samplers are diffusers schedulers, built on our noise levels and checked against them."""

import inspect
import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from diffusion_lit.diffusion.parameterization import PREDICTION_TYPES
from diffusion_lit.diffusion.schedules import Process


@dataclass(frozen=True)
class Sampler:
    """A diffusers scheduler class with the arguments its yaml names.

    Args:
        scheduler: a class of diffusers, called `scheduler(trained_betas=..., **arguments)`, or without betas if it has
            noise levels of its own.
        arguments: for the constructor; `step_arguments` go to each `step` call (eta, for example).
        steps: on the way from noise to image (None: every training timestep). Most evaluate the network once a step,
            some twice.
        batch_size: images made at a time. Pixels are reproducible for the same batch size.
        clip_x0: hold each estimate of the clean image inside [-1, 1].
    """

    scheduler: type
    arguments: dict
    step_arguments: dict
    steps: int | None
    batch_size: int
    clip_x0: bool = True

    def build(self, table: Process, begin: int = 0):
        """The scheduler on our levels, its timesteps set: one for each evaluation of the network, `begin` the first.

        Raises:
            AssertionError: if the scheduler's noise levels are not the table's (a scheduler that ignores its betas).
        """
        told = {"num_train_timesteps": table.num_train_timesteps}
        if "trained_betas" in inspect.signature(self.scheduler).parameters:
            told["trained_betas"] = _finite_betas(table).numpy()
        scheduler = self.scheduler(**told, **self.arguments)
        if hasattr(scheduler, "alphas_cumprod"):
            difference = (scheduler.alphas_cumprod.double() - table.alpha_bar).abs().max().item()
            if difference > 1e-6:
                raise AssertionError(
                    f"{self.scheduler.__name__} uses other noise levels than ours (by {difference:.1e})"
                )
        scheduler.set_timesteps(self.steps or table.num_train_timesteps)
        count = int((scheduler.timesteps >= 0).sum())  # rounding in "trailing" adds a -1 to 61 steps and some others
        if count < len(scheduler.timesteps):
            scheduler.timesteps = scheduler.timesteps[:count]
            if hasattr(scheduler, "sigmas"):
                scheduler.sigmas = torch.cat([scheduler.sigmas[:count], scheduler.sigmas[-1:]])
        if "trained_betas" in told and scheduler.timesteps.is_floating_point():  # between two levels: to the nearest
            scheduler.timesteps = scheduler.timesteps.round()
            signal = scheduler.alphas_cumprod[scheduler.timesteps.long()]
            scheduler.sigmas = torch.cat([(1 / signal - 1).sqrt(), scheduler.sigmas[-1:]])
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(begin)  # else looked up by timestep, which Karras sigmas have twice
        scheduler.is_scale_input_called = True  # some warn unless it is: the scale is `_scale`, below
        return scheduler

    def step(self, scheduler, k: int, x0_hat: Tensor, x_t: Tensor, table: Process, generators: list) -> Tensor:
        """X at the next of `times_of`, from the estimate of x0 at the k-th, handed over in the form that the scheduler
        takes.

        The last step has no noise left to keep or to add: it ends on the estimate itself. (diffusers' DDPM adds the
        noise of fixed_large to the image unless the last timestep is 0, which "trailing" spacing seldom reaches.)
        """
        if k == len(scheduler.timesteps) - 1:
            return x0_hat
        if not hasattr(scheduler, "sigmas"):
            _name_next_timestep(scheduler, k)
        t, t_next = times_of(scheduler, table)[k : k + 2]
        out = to_prediction(scheduler.config.get("prediction_type", "velocity"), x0_hat, x_t, table, t)
        random = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
        x = x_t * (_scale(scheduler, k) / size(table, t))
        x = scheduler.step(out, scheduler.timesteps[k].item(), x, **random, **self.step_arguments, return_dict=False)[0]
        return x * (size(table, t_next) / _scale(scheduler, k + 1))


def times_of(scheduler, table: Process) -> Tensor:
    """The process's time at each evaluation of the network, from noise to image."""
    if hasattr(scheduler, "alphas_cumprod"):
        return table.times[scheduler.timesteps.long()]
    return scheduler.sigmas[: len(scheduler.timesteps)]


def size(table: Process, t: Tensor) -> float:
    """Standard deviation of x_t for x0 of standard deviation 1, sqrt(alpha^2 + sigma^2)."""
    return math.hypot(*map(float, table.alpha_sigma(t)))


def _scale(scheduler, k: int) -> float:
    """The same of a scheduler's own samples at its k-th timestep: 1 if it preserves variance, as most do; some reckon
    with alpha = 1, so that their first noise is large, and those of flows with alpha = 1 - sigma.
    """
    first = getattr(scheduler, "init_noise_sigma", None)
    if first == 1:
        return 1.0
    sigma = float(scheduler.sigmas[k])
    return math.hypot(1 - sigma if first is None else 1, sigma)


def make_sampler(config: dict, scheduler: type) -> Sampler:
    """From a yaml of `conf/sampler`: our own keys, arguments of `step`, and everything else for the constructor."""
    ours = {"_target_", "name", "serves", "starts_anywhere", "steps", "batch_size", "clip_x0"}
    of_step = set(inspect.signature(scheduler.step).parameters)
    rest = {key: value for key, value in config.items() if key not in ours}
    return Sampler(
        scheduler=scheduler,
        arguments={key: value for key, value in rest.items() if key not in of_step},
        step_arguments={key: value for key, value in rest.items() if key in of_step},
        steps=config["steps"],
        batch_size=config["batch_size"],
        clip_x0=config["clip_x0"],
    )


def to_prediction(prediction_type: str, x0_hat: Tensor, x_t: Tensor, table: Process, t: Tensor) -> Tensor:
    """The network output of `prediction_type` that stands for an estimate of x0 at time t, for a network that is given
    x_t of unit variance, as schedulers think of it.
    """
    alpha, sigma = table.alpha_sigma(t)
    _, c_skip, c_out = PREDICTION_TYPES[prediction_type](alpha / size(table, t), sigma / size(table, t))
    return (x0_hat - float(c_skip) / size(table, t) * x_t) / float(c_out)


def _finite_betas(table: Process) -> Tensor:
    """The table's betas, the last one short of 1: multistep solvers take the logarithm of alpha.

    What is left of the signal is 2^-24, diffusers' own floor, or less where the level before it is that low too.
    """
    betas, alpha_bar = table.betas.clone(), table.alpha_bar
    if alpha_bar[-1] == 0:
        betas[-1] = 1 - min(2**-24 / alpha_bar[-2].item(), 1e-3)
    return betas


def _name_next_timestep(scheduler, k: int) -> None:
    """DDIM takes `t - T // num_inference_steps` for the next timestep, which is another one than the next of its own
    list unless the steps divide T. A fraction makes the division come out at the real gap.
    """
    timesteps = [*scheduler.timesteps.tolist(), -1]
    scheduler.num_inference_steps = Fraction(scheduler.config.num_train_timesteps, timesteps[k] - timesteps[k + 1])
