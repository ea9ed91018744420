"""The validation loss of a network by noise level, as a torchmetrics metric."""

import math

import torch
from torch import Tensor
from torchmetrics import Metric

from diffusion_lit.training.noise_levels import BINS, ValidationLevels


class LossByNoiseLevel(Metric):
    """Validation loss of one network, summed by level and over all ranks.

    `compute` returns four values:

    - `loss`: the weighted loss, expected over the times that training draws; approximately, as
      all levels of a bin count alike.
    - `error`: the error of the noise estimate eps_hat = (x_t - alpha x0_hat) / sigma,
      averaged over log SNR from -8 to 8, where the process reaches it.
    - `bits_per_dim`: the variational bound of -log p(image) (Kingma et al. 2021), in bits per
      pixel and channel. NaN with an L1 loss and where images are too few for every bin.
    - `bins`: the unweighted error of the output in each of the ten bins, NaN in bins that
      the process does not reach.

    `error` does not depend on weighting, prediction type or the distribution of
    timesteps. Compare schedules that reach the same bins
    (`ValidationLevels.empty`). `bits_per_dim` has all terms of the bound, and
    compares all processes.
    """

    full_state_update = False

    def __init__(self, levels: ValidationLevels):
        super().__init__()
        self.levels = levels
        # one slot per level: if each level occurs once, the sum over ranks only adds zeros and is exact
        self.add_state("errors", torch.zeros(len(levels)), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(len(levels)), dist_reduce_fx="sum")
        self.add_state("squares", torch.zeros(len(levels)), dist_reduce_fx="sum")

    def update(self, level: Tensor, error: Tensor, square: Tensor) -> None:
        """Add unweighted error and mean square of each image, (B,), at its level, int64 (B,)."""
        level = level.to(self.errors.device)
        self.errors.index_add_(0, level, error.float())
        self.squares.index_add_(0, level, square.float())
        self.counts.index_add_(0, level, torch.ones_like(error, dtype=torch.float32))

    def compute(self) -> dict[str, float | list[float]]:
        """Return the losses. Waits for the device."""
        levels, counts = self.levels, self.counts.cpu()
        seen = counts > 0
        error = (self.errors.cpu()[seen] / counts[seen]).float()
        index = levels.bin[seen]
        bins = index.unique()  # few images may not cover every bin
        weighted = _mean_by_bin(error * levels.weight[seen], index)[bins]
        in_range = bins[(bins > 0) & (bins < len(BINS) - 1)]
        return {
            "loss": (weighted * levels.share[bins]).sum().item(),
            "error": _mean_by_bin(error * levels.gain[seen], index)[in_range].mean().item(),
            "bits_per_dim": self._bound(error, seen) / math.log(2),
            "bins": _mean_by_bin(error, index).tolist(),
        }

    def _bound(self, error: Tensor, seen: Tensor) -> float:
        """Return the variational bound in nats per dimension."""
        levels = self.levels
        if not levels.is_squared:
            return math.nan
        by_bin = _mean_by_bin(error * levels.bound[seen], levels.bin[seen])[levels.bin.unique()]
        square = (self.squares.sum() / self.counts.sum()).item()
        return by_bin.sum().item() + levels.prior * square + levels.reconstruction


def _mean_by_bin(values: Tensor, index: Tensor) -> Tensor:
    count = torch.bincount(index, minlength=len(BINS))
    return torch.bincount(index, weights=values.double(), minlength=len(BINS)) / count
