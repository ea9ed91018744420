"""Sum losses and skipped steps between two rows of metrics.csv, without a host sync per step.

The sums stay on the device and are read only when a row is due: `.item()` in every step
would make the CPU wait.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from diffusion_lit.distributed import collectives


class Totals(NamedTuple):
    """Loss and counts of all ranks since the last row.

    Attributes:
        loss: mean of the finite losses; NaN if there are none.
        skipped: number of skipped steps.
        non_finite_in_a_row: number of non-finite steps up to now without a finite one between.
    """

    loss: float
    skipped: int
    non_finite_in_a_row: int


class LossWindow:
    """Losses and skipped steps since the last row.

    Args:
        strategy: the `strategy` group. With precision 16-mixed the GradScaler skips steps
            while it searches its scale; these do not count as non-finite steps in a row.
        device: device of the sums.
        state: from a checkpoint, [sum of losses, steps with a finite loss, skipped, in a
            row] of each rank, or None.
    """

    def __init__(self, strategy: dict, device: torch.device, state: list[list[float]] | None = None):
        self.accumulate, self.is_scaled = strategy["accumulate"], strategy["precision"] == "16-mixed"
        loss, finite, skipped, non_finite_in_a_row = _state_of_rank(state) if state else [0.0] * 4
        sums = torch.tensor([loss, finite * self.accumulate, skipped, non_finite_in_a_row], device=device)
        self.loss, self.finite, self.skipped, self.non_finite_in_a_row = sums.unbind()
        self._reset_step()

    def add(self, loss: Tensor) -> None:
        """Add the loss of a micro-batch, divided by the number of micro-batches in a step."""
        is_finite = loss.isfinite()
        self.step_loss = self.step_loss + torch.where(is_finite, loss, 0.0)
        self.step_finite = self.step_finite + is_finite
        self.has_non_finite_loss = self.has_non_finite_loss | ~is_finite

    def end_step(self, is_skipped: Tensor) -> None:
        """Add the sums of the step. `is_skipped`: bool (), on the device."""
        self.loss, self.finite = self.loss + self.step_loss, self.finite + self.step_finite
        self.skipped = self.skipped + is_skipped
        is_non_finite = self.has_non_finite_loss if self.is_scaled else self.has_non_finite_loss | is_skipped
        self.non_finite_in_a_row = torch.where(is_non_finite, self.non_finite_in_a_row + 1, 0)
        self._reset_step()

    def totals(self) -> Totals:
        """Return the totals. Waits for the device and for the other ranks."""
        losses, steps, skipped, non_finite_in_a_row = zip(*self.state(), strict=True)
        mean = sum(losses) / sum(steps) if sum(steps) else float("nan")
        return Totals(mean, int(max(skipped)), int(max(non_finite_in_a_row)))

    def reset(self) -> None:
        """Start the next row; the count of non-finite steps in a row continues."""
        self.loss, self.finite, self.skipped = torch.zeros(3, device=self.loss.device).unbind()

    def state(self) -> list[list[float]]:
        """Return the state of each rank, see `state` above; the same on every rank."""
        loss, finite, *steps = torch.stack([self.loss, self.finite, self.skipped, self.non_finite_in_a_row]).tolist()
        return collectives.all_gather([loss, finite / self.accumulate, *steps])

    def _reset_step(self) -> None:
        zeros = torch.zeros(2, device=self.loss.device)
        self.step_loss, self.step_finite = zeros.unbind()
        self.has_non_finite_loss = torch.zeros((), dtype=torch.bool, device=self.loss.device)


def _state_of_rank(state: list[list[float]]) -> list[float]:
    """Return the state of this rank; with another number of ranks than before, mean sums and maximum counts."""
    if len(state) == collectives.world_size():
        return state[collectives.rank()]
    losses, steps, skipped, non_finite_in_a_row = zip(*state, strict=True)
    return [sum(losses) / len(state), sum(steps) / len(state), max(skipped), max(non_finite_in_a_row)]
