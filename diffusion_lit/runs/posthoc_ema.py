"""Post-hoc EMA: EMA weights of any length, reconstructed after training from snapshots of two tracked EMAs.

Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion
Models", section 3 and appendix C. The EMA of exponent gamma after t steps is sum_i
w_i theta_i, where theta_i are the weights after step i and w_i = (i^(gamma+1) -
(i-1)^(gamma+1)) / t^(gamma+1): a power-function profile, whose relative width stays
the same during training. Its `length` is the standard deviation of the profile over
t.

snapshots/step-*.pt holds {"tracked_emas": [state dict of LENGTHS[0], of
LENGTHS[1]]}, with parameters in half precision as in the paper. A checkpoint holds
both EMAs of its step in full precision.
"""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from diffusion_lit.runs import checkpoints
from diffusion_lit.system.errors import CheckpointError

LENGTHS = (0.05, 0.1)  # tracked in every run with ema_snapshot_every
MAX_MISFIT = 0.05  # above this a warning is logged
MAX_COEFFICIENTS = 50  # sum of absolute values: half precision leaves 2^-11 of a weight, 50 times that is 2 %


# ------------------------------------------------------------------------------------------ profiles


@cache
def solve_gamma(length: float) -> float:
    """Return the exponent gamma of a length below 1 / sqrt(12).

    It solves length = sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2).
    """
    square = length**-2
    return float(np.roots([1, 7, 16 - square, 12 - square]).real.max())


def compute_decay(length: float, step: int) -> float:
    """Return the EMA decay of an update, (1 - 1/step)^(gamma+1).

    Step 1 is the first, which copies the weights.
    """
    return (1 - 1 / step) ** (solve_gamma(length) + 1)


def solve_coefficients(snapshots: Sequence[tuple[float, int]], length: float, step: int) -> tuple[np.ndarray, float]:
    """Return the coefficients of snapshots whose sum is nearest to the EMA of a length.

    Least squares over the profiles as in the paper, with the constraint that the
    coefficients sum to 1. The paper has no such constraint. It removes most of the
    error where snapshots are few.

    Args:
        snapshots: (length, step) of N snapshots.
        length: of the EMA to reconstruct.
        step: its number of steps.

    Returns:
        Coefficients (N,) float64, and the misfit: the distance of the profiles
        relative to the norm of the target profile.
    """
    time = np.arange(step + 1) / step  # relative, so that powers neither overflow nor lose the last steps
    profile = {each: np.diff(time ** (solve_gamma(each) + 1)) for each in {length, *LENGTHS}}
    sums = {(a, b): np.append(0, np.cumsum(profile[a] * profile[b])) for a in profile for b in profile}
    scale = np.array([(step / s) ** (solve_gamma(each) + 1) for each, s in snapshots])
    products = np.array([[sums[a, b][min(s, t)] for b, t in snapshots] for a, s in snapshots]) * scale[:, None] * scale
    target = np.array([sums[each, length][s] for each, s in snapshots]) * scale
    norms = np.sqrt(np.diag(products))  # differ by orders of magnitude: solve for profiles of norm 1
    system = np.block([[products / norms[:, None] / norms, 1 / norms[:, None]], [1 / norms, np.zeros(1)]])
    coefficients = np.linalg.lstsq(system, np.append(target / norms, 1), rcond=1e-13)[0][:-1] / norms
    total = sums[length, length][-1]
    residual = total - 2 * coefficients @ target + coefficients @ products @ coefficients
    return coefficients, float(np.sqrt(max(residual, 0) / total))


# ------------------------------------------------------------------------------------------ files


def snapshot_path(run: Path, step: int) -> Path:
    """Return the path of the snapshot of an optimizer step."""
    return run / "snapshots" / f"step-{step:08d}.pt"


def list_snapshot_steps(run: Path) -> list[int]:
    """Return the steps that have a snapshot, ascending."""
    return sorted(int(file.stem.removeprefix("step-")) for file in (run / "snapshots").glob("step-*.pt"))


def save_snapshot(run: Path, step: int, emas: Sequence[nn.Module]) -> None:
    """Write a snapshot atomically, parameters in half precision and buffers as they are.

    Raises:
        UserError: exit 75 if it cannot be written.
    """
    states = [ema.state_dict() | {name: x.detach().half() for name, x in ema.named_parameters()} for ema in emas]
    checkpoints.save_checkpoint({"tracked_emas": states}, snapshot_path(run, step))


def remove_snapshots_after(run: Path, step: int) -> None:
    """Remove the snapshots of later steps, which a run that resumes at `step` does again."""
    for later in list_snapshot_steps(run):
        if later > step:
            snapshot_path(run, later).unlink(missing_ok=True)


def reconstruct_ema(run: Path, checkpoint: Path, length: float, warn: Callable[[str], None]) -> dict[str, Tensor]:
    """Return the EMA weights of a length at the step of a checkpoint, as a state dict.

    Args:
        run: the run folder.
        checkpoint: its file.
        length: relative to the training up to the checkpoint.
        warn: called with a message if a damaged snapshot is skipped or the profile
            is not met well.

    Raises:
        UserError: exit 4 if the run tracked no EMAs for it.
    """
    loaded = checkpoints.load_checkpoint(checkpoint)
    final = [checkpoints.extract_network_state(loaded, f"tracked_emas.{k}") for k in range(len(LENGTHS))]
    if not final[0]:
        raise CheckpointError(f"{checkpoint} has no tracked EMAs. Train with ema_snapshot_every=<steps>")
    last, steps = loaded["global_step"], []
    for step in list_snapshot_steps(run):
        damage = checkpoints.find_damage(snapshot_path(run, step)) if step < last else None
        if damage:
            warn(f"{snapshot_path(run, step)} is skipped: {damage}")
        elif step < last:
            steps.append(step)
    snapshots = [(each, step) for step in [*steps, last] for each in LENGTHS]
    coefficients, misfit = solve_coefficients(snapshots, length, last)
    if misfit > MAX_MISFIT or np.abs(coefficients).sum() > MAX_COEFFICIENTS:
        warn(
            f"ema_length={length} is made of {len(steps) + 1} snapshots of lengths {' and '.join(map(str, LENGTHS))}. "
            f"Its profile differs by {misfit:.1%}, rounding errors grow {np.abs(coefficients).sum():.0f} times"
        )
    floats = {name: value for name, value in final[0].items() if value.is_floating_point()}
    sums = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in floats.items()}
    for step, pair in zip([*steps, last], coefficients.reshape(-1, len(LENGTHS)), strict=True):
        states = final if step == last else checkpoints.load_checkpoint(snapshot_path(run, step))["tracked_emas"]
        for coefficient, state in zip(pair, states, strict=True):
            for name, value in sums.items():
                value.add_(state[name].double(), alpha=coefficient)
    return final[0] | {name: value.to(floats[name].dtype) for name, value in sums.items()}
