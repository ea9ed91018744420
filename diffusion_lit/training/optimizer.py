"""The optimizer and its learning-rate schedule, counted in optimizer steps."""

import math
from collections.abc import Callable, Iterable
from fractions import Fraction

import torch
from torch import nn

# schedule -> factor on the learning rate, for the fraction of the way from the end of warm-up to the last step and the
# `optimizer` group; a true fraction, for at the edge of a stair or of a restart rounding would cost a whole step
SCHEDULES: dict[str, Callable[[Fraction, dict], float]] = {
    "constant": lambda progress, config: 1.0,
    "linear": lambda progress, config: 1.0 - progress,
    "cosine": lambda progress, config: half_cosine(progress),
    "cosine_restarts": lambda progress, config: half_cosine(config["cycles"] * progress % 1) if progress < 1 else 0.0,
    "polynomial": lambda progress, config: (1.0 - progress) ** config["power"],
    "staircase": lambda progress, config: 1 - math.floor(config["cycles"] * progress) / config["cycles"],
}
CLASSES = {"torch.optim.Adam": torch.optim.Adam, "torch.optim.AdamW": torch.optim.AdamW}


def half_cosine(progress: Fraction) -> float:
    """From 1 to 0 (Loshchilov & Hutter 2017, equation 5)."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizer(parameters: Iterable[nn.Parameter], config: dict, fused: bool) -> torch.optim.Optimizer:
    """Adam or AdamW from `conf/optimizer`. The fused kernel is several times faster and equal to rounding."""
    return CLASSES[config["_target_"]](parameters, lr=config["lr"], fused=fused, **optimizer_settings(config))


def optimizer_settings(config: dict) -> dict:
    """What a parameter group holds besides its learning rate."""
    return {"betas": tuple(config["betas"]), "eps": config["eps"], "weight_decay": config["weight_decay"]}


def warmup_steps(config: dict, max_steps: int) -> int:
    """Warm-up in optimizer steps, given as `warmup_steps` or as `warmup_fraction` of the run."""
    fraction = config["warmup_fraction"]
    return round(fraction * max_steps) if fraction is not None else config["warmup_steps"]


def learning_rate_factor(config: dict, max_steps: int) -> Callable[[int], float]:
    """Factor on the learning rate of the step after `n` finished ones: linear warm-up, then the schedule to max_steps.

    The first step of a warm-up of w steps runs at 1 / w, step w at the full rate. The schedule would reach its end with
    the step after the last (as in diffusers), so that no step is wasted at rate 0; past it, it stays there.
    """
    warmup, schedule = warmup_steps(config, max_steps), SCHEDULES[config["schedule"]]

    def factor(n: int) -> float:
        if n < warmup:
            return (n + 1) / warmup
        return schedule(min(Fraction(1), Fraction(n - warmup, max(1, max_steps - warmup))), config)

    return factor
