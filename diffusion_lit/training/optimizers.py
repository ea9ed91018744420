"""The optimizer and its learning-rate schedule, counted in optimizer steps."""

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction

import torch
from torch import nn

from diffusion_lit.config.targets import locate
from diffusion_lit.system.errors import CheckpointError, ConfigError

# Factor on the learning rate as a function of the progress from the end of the warm-up (0) to the last step (1) and of
# the `lr_schedule` group. Progress is an exact fraction: rounding at the edge of a stair would cost a step.
SCHEDULES: dict[str, Callable[[Fraction, dict], float]] = {
    "constant": lambda progress, config: 1.0,
    "linear": lambda progress, config: 1.0 - progress,
    "cosine": lambda progress, config: half_cosine(progress),
    "cosine_restarts": lambda progress, config: half_cosine(config["cycles"] * progress % 1) if progress < 1 else 0.0,
    "polynomial": lambda progress, config: (1.0 - progress) ** config["power"],
    "staircase": lambda progress, config: 1 - math.floor(config["cycles"] * progress) / config["cycles"],
}


def half_cosine(progress: Fraction) -> float:
    """Return the factor that falls from 1 to 0 (Loshchilov & Hutter 2017, equation 5)."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizer(parameters: Iterable[nn.Parameter], leaf: dict, fused: bool) -> torch.optim.Optimizer:
    """Return the optimizer of an `optimizer` group.

    Args:
        parameters: parameters to optimize.
        leaf: the class as `_target_`, and its constructor arguments.
        fused: use the fused kernel if the class has one. It is several times faster and
            equal up to rounding.

    Raises:
        ConfigError: if the class refuses the arguments.
    """
    cls = locate(leaf["_target_"])
    # PyTorch expects tuples of floats, and yaml has lists, in which 0 is an integer
    settings = {key: _to_floats(value) if isinstance(value, list) else value for key, value in leaf.items()}
    del settings["_target_"]
    if fused and "fused" in inspect.signature(cls).parameters:
        settings = {"fused": True} | settings
    try:
        return cls(parameters, **settings)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0].removesuffix(".")
        raise ConfigError(f"optimizer: {leaf['_target_']}: {reason}. Change its arguments or the class") from error


def _to_floats(values: list) -> tuple:
    return tuple(float(value) if isinstance(value, int) else value for value in values)


def warmup_steps(lr_schedule: dict, max_steps: int) -> int:
    """Return the optimizer steps of the warm-up, given as `warmup_steps` or as `warmup_fraction` of the run."""
    fraction = lr_schedule["warmup_fraction"]
    return round(fraction * max_steps) if fraction is not None else lr_schedule["warmup_steps"]


def learning_rate_factor(lr_schedule: dict, max_steps: int) -> Callable[[int], float]:
    """Return the factor on the learning rate of the step after `n` finished ones: linear warm-up, then the schedule.

    The first of w warm-up steps runs at 1 / w, step w at the full rate. The schedule
    reaches its end one step after the last one (as in diffusers), so that no step runs at
    rate 0, and stays there.
    """
    warmup, schedule = warmup_steps(lr_schedule, max_steps), SCHEDULES[lr_schedule["name"]]

    def factor(n: int) -> float:
        if n < warmup:
            return (n + 1) / warmup
        return schedule(min(Fraction(1), Fraction(n - warmup, max(1, max_steps - warmup))), lr_schedule)

    return factor


def replace_settings(checkpoint: dict, groups: Sequence[dict], factor: Callable[[int], float] | None) -> None:
    """Give the optimizer state of a checkpoint other settings, and the learning rates that follow from them.

    Args:
        checkpoint: changed in place.
        groups: parameter groups of the new optimizer.
        factor: on the learning rate after n steps; None for a constant rate.

    Raises:
        UserError: exit 4 for another number of groups, or another optimizer.
    """
    stored = checkpoint["optimizer_states"][0]["param_groups"]
    if [*map(_state_kind, stored)] != [*map(_state_kind, groups)]:
        raise CheckpointError(
            "the checkpoint holds the state of another optimizer, or of other parameter groups. "
            "Resume with the optimizer of the run."
        )
    bases = [group["lr"] for group in groups]
    rates = [base * factor(checkpoint["global_step"]) if factor else base for base in bases]
    for old, new, base, rate in zip(stored, groups, bases, rates, strict=True):
        settings = {key: value for key, value in new.items() if key != "params"}
        old |= settings | {"lr": rate, "initial_lr": base}
    for schedule in checkpoint["lr_schedulers"]:
        schedule |= {"base_lrs": bases, "_last_lr": rates}


def _state_kind(group: dict) -> tuple:
    """Return what the state of an optimizer depends on: its keys, and whether it keeps more running values."""
    return group.keys() - {"initial_lr"}, *[bool(group.get(key)) for key in ("amsgrad", "centered", "momentum")]
