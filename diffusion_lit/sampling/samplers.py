"""Samplers are diffusers schedulers, built on our noise table and checked against it."""

import inspect
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from diffusion_lit.diffusion.noise import NoiseTable
from diffusion_lit.diffusion.prediction import PREDICTION_TYPES


@dataclass(frozen=True)
class Sampler:
    """A diffusers scheduler class with the arguments its yaml names.

    Args:
        scheduler: a class of diffusers, called `scheduler(trained_betas=..., **arguments)`.
        arguments: for the constructor; `step_arguments` go to each `step` call (eta, for example).
        steps: network evaluations on the way from noise to image (None: every training timestep).
        batch_size: images made at a time. Pixels are reproducible for the same batch size.
        clip_x0: hold each estimate of the clean image inside [-1, 1].
    """

    scheduler: type
    arguments: dict
    step_arguments: dict
    steps: int | None
    batch_size: int
    clip_x0: bool = True

    def build(self, table: NoiseTable, begin: int = 0):
        """The scheduler on our betas, its timesteps set, to be asked for step `begin` first.

        Raises:
            AssertionError: if the scheduler's noise levels are not the table's (a scheduler that ignores its betas).
        """
        scheduler = self.scheduler(
            num_train_timesteps=table.num_train_timesteps, trained_betas=_finite_betas(table).numpy(), **self.arguments
        )
        difference = (scheduler.alphas_cumprod.double() - table.alpha_bar).abs().max().item()
        if difference > 1e-6:
            raise AssertionError(f"{self.scheduler.__name__} uses other noise levels than ours (by {difference:.1e})")
        steps = self.steps or table.num_train_timesteps
        scheduler.set_timesteps(steps)
        if len(scheduler.timesteps) > steps:  # rounding in "trailing" adds a timestep -1 to 61 steps and some others
            scheduler.timesteps = scheduler.timesteps[:steps]
            if hasattr(scheduler, "sigmas"):
                scheduler.sigmas = torch.cat([scheduler.sigmas[:steps], scheduler.sigmas[-1:]])
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(begin)  # else looked up by timestep, which Karras sigmas have twice
        return scheduler

    def step(self, scheduler, k: int, x0_hat: Tensor, x_t: Tensor, table: NoiseTable, generators: list) -> Tensor:
        """x at the next timestep, from the estimate of x0 at the k-th, handed over in the form the scheduler takes.

        The last step has no noise left to keep or to add: it ends on the estimate itself. (diffusers' DDPM adds the
        noise of fixed_large to the image unless the last timestep is 0, which "trailing" spacing seldom reaches.)
        """
        if k == len(scheduler.timesteps) - 1:
            return x0_hat
        t = int(scheduler.timesteps[k])
        if not hasattr(scheduler, "sigmas"):
            _name_next_timestep(scheduler, k)
        out = to_prediction(scheduler.config.prediction_type, x0_hat, x_t, table, t)
        return scheduler.step(out, t, x_t, generator=generators, **self.step_arguments, return_dict=False)[0]


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


def to_prediction(prediction_type: str, x0_hat: Tensor, x_t: Tensor, table: NoiseTable, t: int) -> Tensor:
    """The network output of `prediction_type` that stands for an estimate of x0 at timestep t."""
    _, c_skip, c_out = PREDICTION_TYPES[prediction_type](table.alpha[t], table.sigma[t])
    return (x0_hat - float(c_skip) * x_t) / float(c_out)


def _finite_betas(table: NoiseTable) -> Tensor:
    """The table's betas, the last one short of 1: multistep solvers take the logarithm of alpha.

    What is left of the signal is 2^-24, diffusers' own floor, or less where the level before it is that low too.
    """
    betas, alpha_bar = table.betas.clone(), table.alpha_bar
    if alpha_bar[-1] == 0:
        betas[-1] = 1 - min(2**-24 / alpha_bar[-2].item(), 1e-3)
    return betas


def _name_next_timestep(scheduler, k: int) -> None:
    """DDIM takes `t - T // num_inference_steps` for the next timestep, which is another one than the next of its own
    list unless the steps divide T. A fraction makes the division come out at the real gap."""
    timesteps = [*scheduler.timesteps.tolist(), -1]
    scheduler.num_inference_steps = Fraction(scheduler.config.num_train_timesteps, timesteps[k] - timesteps[k + 1])
