"""Averages of any length, made after training from snapshots of two that were tracked in it (Karras et al. 2024,
"Analyzing and Improving the Training Dynamics of Diffusion Models", section 3 and appendix C).

The average of exponent gamma after t steps is sum_i w_i theta_i, theta_i the weights after step i, with
w_i = (i^(gamma+1) - (i-1)^(gamma+1)) / t^(gamma+1): a power profile, whose width is always the same share of the
training so far. Its `length` is the standard deviation of that profile over t.

snapshots/step-*.pt: {"tracked_emas": [of LENGTHS[0], of LENGTHS[1]]}, names to tensors, parameters in half precision as
the paper has them. A checkpoint holds both averages of its own step as they are.
"""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from diffusion_lit.runs import checkpoints
from diffusion_lit.system.errors import Exit, UserError

LENGTHS = (0.05, 0.1)  # tracked; files do not repeat them
MISFIT = 0.05  # a larger one is told of
CANCELLATION = 50  # a larger one is told of: half precision leaves 2^-11 of a weight, fifty times that is 2 %


@cache
def gamma_from_length(length: float) -> float:
    """The exponent of a length = sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2), for lengths below 1 / sqrt(12)."""
    square = length**-2
    return float(np.roots([1, 7, 16 - square, 12 - square]).real.max())


def power_ema_decay(length: float, step: int) -> float:
    """Of the update after `step` steps, 1 for the first: (1 - 1/step)^(gamma+1); the first update copies."""
    return (1 - 1 / step) ** (gamma_from_length(length) + 1)


def solve_coefficients(snapshots: Sequence[tuple[float, int]], length: float, step: int) -> tuple[np.ndarray, float]:
    """How much of each snapshot, a (length, step), makes the average of `length` after `step` steps.

    The shares (N,), float64, bring their profiles nearest to the one asked for, by least squares over the steps, and
    sum to 1, which the paper does not ask for and which takes most of the error away where snapshots are few. With
    them comes the misfit, the distance of the profiles as a share of the norm of the one asked for.
    """
    place = np.arange(step + 1) / step  # in the training so far: powers of it neither overflow nor lose the last steps
    profile = {each: np.diff(place ** (gamma_from_length(each) + 1)) for each in {length, *LENGTHS}}
    until = {(a, b): np.append(0, np.cumsum(profile[a] * profile[b])) for a in profile for b in profile}
    scale = np.array([(step / s) ** (gamma_from_length(each) + 1) for each, s in snapshots])
    products = np.array([[until[a, b][min(s, t)] for b, t in snapshots] for a, s in snapshots]) * scale[:, None] * scale
    wanted = np.array([until[each, length][s] for each, s in snapshots]) * scale
    norms = np.sqrt(np.diag(products))  # of the profiles, which differ much: solved for profiles of norm 1
    system = np.block([[products / norms[:, None] / norms, 1 / norms[:, None]], [1 / norms, np.zeros(1)]])
    shares = np.linalg.lstsq(system, np.append(wanted / norms, 1), rcond=1e-13)[0][:-1] / norms
    total = until[length, length][-1]
    rest = total - 2 * shares @ wanted + shares @ products @ shares
    return shares, float(np.sqrt(max(rest, 0) / total))


def snapshot_path(run: Path, step: int) -> Path:
    return run / "snapshots" / f"step-{step:08d}.pt"


def list_snapshot_steps(run: Path) -> list[int]:
    """Steps with a snapshot, ascending."""
    return sorted(int(file.stem.removeprefix("step-")) for file in (run / "snapshots").glob("step-*.pt"))


def save_snapshot(run: Path, step: int, averages: Sequence[nn.Module]) -> None:
    """A snapshot, whole or absent; buffers (running statistics, counts) as they are. Raises UserError as
    `checkpoints.save_checkpoint`.
    """
    states = [
        average.state_dict() | {name: value.detach().half() for name, value in average.named_parameters()}
        for average in averages
    ]
    checkpoints.save_checkpoint({"tracked_emas": states}, snapshot_path(run, step))


def remove_snapshots_after(run: Path, step: int) -> None:
    """Remove the snapshots of steps that a run which goes on from `step` does again."""
    for later in list_snapshot_steps(run):
        if later > step:
            snapshot_path(run, later).unlink(missing_ok=True)


def reconstruct_ema(run: Path, checkpoint: Path, length: float, warn: Callable[[str], None]) -> dict[str, Tensor]:
    """The average of `length` at the step of a checkpoint, as a network's state dict in the dtype of its averages.

    Args:
        warn: is told of damaged snapshots, which are passed over, and where the average is not quite the one asked for.

    Raises:
        UserError: exit 4 if the run tracked no averages for it.
    """
    held = checkpoints.load_checkpoint(checkpoint)
    own = [checkpoints.extract_network_state(held, f"tracked_emas.{k}") for k in range(len(LENGTHS))]
    if not own[0]:
        raise UserError(Exit.CHECKPOINT, f"{checkpoint} has no averages to make others from; see ema_snapshot_every")
    last, steps = held["global_step"], []
    for step in list_snapshot_steps(run):
        why = checkpoints.find_damage(snapshot_path(run, step)) if step < last else None
        if why:
            warn(f"{snapshot_path(run, step)} is passed over: {why}")
        elif step < last:
            steps.append(step)
    shares, misfit = solve_coefficients([(each, step) for step in [*steps, last] for each in LENGTHS], length, last)
    if misfit > MISFIT or np.abs(shares).sum() > CANCELLATION:
        warn(
            f"ema_length={length} is made of {len(steps) + 1} snapshots of lengths {' and '.join(map(str, LENGTHS))}: "
            f"its profile is met within {misfit:.1%}, rounding of snapshots counts {np.abs(shares).sum():.0f} times"
        )
    averages = {name: value for name, value in own[0].items() if value.is_floating_point()}
    mixed = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in averages.items()}
    for step, pair in zip([*steps, last], shares.reshape(-1, len(LENGTHS)), strict=True):
        states = own if step == last else checkpoints.load_checkpoint(snapshot_path(run, step))["tracked_emas"]
        for share, state in zip(pair, states, strict=True):
            for name, value in mixed.items():
                value.add_(state[name].double(), alpha=share)
    return own[0] | {name: value.to(averages[name].dtype) for name, value in mixed.items()}
