"""Samplers: diffusers schedulers, built on the noise levels of a process and checked against them.

To add a sampler, write a file in `conf/sampler` that names a scheduler class.
"""

import inspect
import math
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from typing import Any

import torch
from torch import Tensor

from diffusion_lit.diffusion.parameterization import PREDICTION_TYPES
from diffusion_lit.diffusion.schedules import Process
from diffusion_lit.system.errors import ConfigError

_signature: Any = cache(inspect.signature)  # `step` needs it at every step


@dataclass(frozen=True)
class Sampler:
    """A diffusers scheduler class with its arguments.

    Args:
        scheduler: a scheduler class, called `scheduler(trained_betas=..., **arguments)`, or
            without betas if it has noise levels of its own.
        arguments: of the constructor.
        step_arguments: of each `step` call, such as eta.
        steps: number of steps; None is every training timestep. Most schedulers evaluate the
            network once a step, some twice.
        batch_size: images generated at a time; samples are byte-identical for the same size.
        clip_x0: clip each estimate of x0 to [-1, 1].
    """

    scheduler: type[Any]
    arguments: dict
    step_arguments: dict
    steps: int | None
    batch_size: int
    clip_x0: bool = True

    def with_steps(self, steps: int | None) -> "Sampler":
        """Return the sampler with another number of steps; None: as it is."""
        return self if steps is None else replace(self, steps=steps)

    def build_scheduler(self, process: Process, begin: int = 0):
        """Return the scheduler on the levels of the process, with one timestep per network evaluation.

        Args:
            process: noise levels.
            begin: index of the step that is taken first, for `set_begin_index`.

        Raises:
            UserError: exit 2 if the scheduler has other noise levels, because it ignores its betas.
        """
        arguments = {"num_train_timesteps": process.num_train_timesteps, **self.arguments}
        takes_betas = "trained_betas" in _signature(self.scheduler).parameters
        if takes_betas:
            arguments["trained_betas"] = finite_betas(process).numpy()
        scheduler = self.scheduler(**arguments)
        if hasattr(scheduler, "alphas_cumprod"):
            difference = (scheduler.alphas_cumprod.double() - process.alpha_bar).abs().max().item()
            if difference > 1e-6:
                name = self.scheduler.__name__
                message = f"{name}: its noise levels differ from those of the process by {difference:.1e}"
                raise ConfigError(f"sampler: {message}. Use another scheduler")
        scheduler.set_timesteps(self.steps or process.num_train_timesteps)
        count = int((scheduler.timesteps >= 0).sum())  # rounding in "trailing" adds a -1, at 61 steps for example
        if count < len(scheduler.timesteps):
            scheduler.timesteps = scheduler.timesteps[:count]
            if hasattr(scheduler, "sigmas"):
                scheduler.sigmas = torch.cat([scheduler.sigmas[:count], scheduler.sigmas[-1:]])
        if takes_betas and scheduler.timesteps.is_floating_point():  # round to the nearest level
            scheduler.timesteps = scheduler.timesteps.round()
            signal = scheduler.alphas_cumprod[scheduler.timesteps.long()]
            sigmas = torch.cat([(1 / signal - 1).sqrt(), scheduler.sigmas[-1:]])
            scheduler.sigmas = sigmas.double()  # "ancestral" subtracts squares that float32 rounds below 0
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(begin)  # else looked up by timestep, and Karras sigmas have some twice
        scheduler.is_scale_input_called = True  # avoids a warning: `scheduler_scale` does the scaling
        return scheduler

    def step(self, scheduler, k: int, x0_hat: Tensor, x_t: Tensor, process: Process, generators: list) -> Tensor:
        """Return x at the next time of the scheduler.

        The last step returns x0_hat: there is no noise left to keep or to add. (diffusers' DDPM
        with fixed_large variance adds noise to the image unless the last timestep is 0, which
        "trailing" spacing seldom reaches.)

        Args:
            scheduler: what `build_scheduler` returned.
            k: index of the current time.
            x0_hat: estimate of the clean image, (B, C, H, W).
            x_t: current sample, (B, C, H, W).
            process: noise levels.
            generators: a CPU generator for each image.
        """
        if k == len(scheduler.timesteps) - 1:
            return x0_hat
        if not hasattr(scheduler, "sigmas"):
            _set_ddim_step(scheduler, k)
        t, t_next = scheduler_times(scheduler, process)[k : k + 2]
        out = x0_to_output(scheduler.config.get("prediction_type", "velocity"), x0_hat, x_t, process, t)
        arguments = dict(self.step_arguments)
        if "generator" in _signature(self.scheduler.step).parameters:
            arguments["generator"] = generators
        x = x_t * (scheduler_scale(scheduler, k) / total_std(process, t))
        x = scheduler.step(out, scheduler.timesteps[k].item(), x, **arguments, return_dict=False)[0]
        return x * (total_std(process, t_next) / scheduler_scale(scheduler, k + 1))


def make_sampler(config: dict, scheduler: type[Any]) -> Sampler:
    """Return the sampler of a config of `conf/sampler`.

    Keys other than `_target_`, `name`, `serves`, `starts_anywhere` and the fields
    of `Sampler` are arguments of `scheduler.step`, or else of the scheduler's
    constructor.
    """
    fields = {key: config[key] for key in ("steps", "batch_size", "clip_x0")}
    if fields["batch_size"] is None:
        # the last batch is filled up, which costs a CPU time
        has_gpu = torch.accelerator.is_available()
        fields["batch_size"] = 64 if has_gpu else 16
    not_arguments = {"_target_", "name", "serves", "starts_anywhere"} | fields.keys()
    arguments = {key: value for key, value in config.items() if key not in not_arguments}
    step_keys = arguments.keys() & _signature(scheduler.step).parameters.keys()
    step_arguments = {key: arguments.pop(key) for key in sorted(step_keys)}
    return Sampler(scheduler, arguments, step_arguments, **fields)


def scheduler_times(scheduler, process: Process) -> Tensor:
    """Return the process's time at each network evaluation, from noise to image, (S,)."""
    if hasattr(scheduler, "alphas_cumprod"):
        return process.times[scheduler.timesteps.long()]
    return scheduler.sigmas[: len(scheduler.timesteps)]


def total_std(process: Process, t: Tensor) -> float:
    """Return the standard deviation of x_t for x0 of standard deviation 1, sqrt(alpha^2 + sigma^2)."""
    return math.hypot(*map(float, process.alpha_sigma(t)))


def scheduler_scale(scheduler, k: int) -> float:
    """Return the standard deviation of the scheduler's own sample at its k-th timestep.

    - `init_noise_sigma` is 1: the scheduler preserves variance, and the result is 1.
    - It is missing, as for flow matching: alpha = 1 - sigma.
    - It is large: alpha = 1.
    """
    init_sigma = getattr(scheduler, "init_noise_sigma", None)
    if init_sigma == 1:
        return 1.0
    sigma = float(scheduler.sigmas[k])
    return math.hypot(1 - sigma if init_sigma is None else 1, sigma)


def x0_to_output(prediction_type: str, x0_hat: Tensor, x_t: Tensor, process: Process, t: Tensor) -> Tensor:
    """Return the network output that stands for an estimate of x0 at time t, (B, C, H, W).

    The output is that of a network with input x_t of unit variance, as schedulers
    expect.
    """
    (alpha, sigma), std = process.alpha_sigma(t), total_std(process, t)
    _, c_skip, c_out = PREDICTION_TYPES[prediction_type](alpha / std, sigma / std, process.sigma_data)
    return (x0_hat - float(c_skip) / std * x_t) / float(c_out)


def finite_betas(process: Process) -> Tensor:
    """Return the betas of the process, (T,), the last one below 1: multistep solvers take log alpha.

    The remaining signal is 2^-24, the floor of diffusers, or less where the level before is that
    low too.
    """
    betas, alpha_bar = process.betas.clone(), process.alpha_bar
    if alpha_bar[-1] == 0:
        betas[-1] = 1 - min(2**-24 / alpha_bar[-2].item(), 1e-3)
    return betas


def _set_ddim_step(scheduler, k: int) -> None:
    """Make the next timestep of a scheduler without sigmas, such as DDIM and DDPM, that of its list.

    They compute it as `t - T // num_inference_steps`, which differs unless the
    steps divide T. With a fraction for `num_inference_steps` the division is
    exact.
    """
    t, t_next = scheduler.timesteps[k : k + 2].tolist()
    scheduler.num_inference_steps = Fraction(scheduler.config.num_train_timesteps, t - t_next)
