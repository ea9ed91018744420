"""What is summed up from one row of metrics.csv to the next: on the device, and read only where a row is due."""

from typing import NamedTuple

import torch
from torch import Tensor

from diffusion_lit.distributed import collectives


class Totals(NamedTuple):
    """Of all ranks together: mean of the finite losses (NaN if there is none), steps that were skipped, and steps in a
    row up to now whose loss or gradient was not finite.
    """

    loss: float
    skipped: int
    in_a_row: int


class LossWindow:
    """Losses and skipped steps since the last row.

    Args:
        strategy: the `strategy` group. With precision 16-mixed a scaler skips steps until gradients are finite, and
            they do not count as `in_a_row`.
        state: of a checkpoint, [sum of losses, steps with a finite loss, skipped, in a row] of each rank, or None.
    """

    def __init__(self, strategy: dict, device: torch.device, state: list[list[float]] | None = None):
        self.accumulate, self.scaled = strategy["accumulate"], strategy["precision"] == "16-mixed"
        own = _own(state) if state else [0.0] * 4
        own[1] *= self.accumulate
        self.loss, self.finite, self.skipped, self.in_a_row = torch.tensor(own, device=device).unbind()
        self.step_loss, self.step_finite = torch.zeros(2, device=device).unbind()  # of the step under way
        self.broken = torch.zeros((), dtype=torch.bool, device=device)  # whether a loss of it is

    def add(self, loss: Tensor) -> None:
        """The loss of a micro-batch, divided by their number in a step."""
        finite = loss.isfinite()
        self.step_loss = self.step_loss + torch.where(finite, loss, 0.0)
        self.step_finite = self.step_finite + finite
        self.broken = self.broken | ~finite

    def end_step(self, skipped: Tensor) -> None:
        self.loss, self.finite = self.loss + self.step_loss, self.finite + self.step_finite
        self.step_loss, self.step_finite = torch.zeros_like(self.loss), torch.zeros_like(self.finite)
        self.skipped = self.skipped + skipped
        broken = self.broken if self.scaled else self.broken | skipped
        self.in_a_row = torch.where(broken, self.in_a_row + 1, 0)
        self.broken = torch.zeros_like(self.broken)

    def totals(self) -> Totals:
        """Waits for the device, and for the other ranks."""
        losses, steps, skipped, in_a_row = zip(*self.state(), strict=True)
        mean = sum(losses) / sum(steps) if sum(steps) else float("nan")
        return Totals(mean, int(max(skipped)), int(max(in_a_row)))

    def begin(self) -> None:
        """A row was written; how many steps in a row were broken goes on."""
        self.loss, self.finite, self.skipped = torch.zeros(3, device=self.loss.device).unbind()

    def state(self) -> list[list[float]]:
        """Of each rank, see `state` above; the same on every rank."""
        loss, finite, *steps = torch.stack([self.loss, self.finite, self.skipped, self.in_a_row]).tolist()
        return collectives.all_gather([loss, finite / self.accumulate, *steps])


def _own(state: list[list[float]]) -> list[float]:
    """This rank's part; where there are others now than there were, the mean, and the most of what was skipped."""
    if len(state) == collectives.world_size():
        return list(state[collectives.rank()])
    losses, steps, skipped, in_a_row = zip(*state, strict=True)
    return [sum(losses) / len(state), sum(steps) / len(state), max(skipped), max(in_a_row)]
