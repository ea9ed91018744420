"""The validation loss of a network by noise level, as a torchmetrics metric."""

import torch
from torch import Tensor
from torchmetrics import Metric

from diffusion_lit.training.noise_levels import BINS, ValidationLevels


class LossByNoiseLevel(Metric):
    """Validation loss of one network, summed for each level and over all ranks by torchmetrics.

    `compute` returns `loss`, the weighted loss expected over times as training draws them (in a bin: over its levels
    evenly); `error`, the mean over the bins of the error of the noise estimate eps_hat = (x_t - alpha x0_hat) / sigma;
    and `bins`, the unweighted error in each of the ten bins (NaN where the process has no level).

    `error` does not depend on weighting, prediction type or how many timesteps a schedule spends where. With an MSE
    loss, a uniform mean over log snr of |eps - eps_hat|^2 is the diffusion part of the variational bound up to a factor
    and the ends of the range (Kingma et al. 2021, section 5), which differ between schedules: compare those that reach
    the same bins.
    """

    full_state_update = False

    def __init__(self, levels: ValidationLevels):
        super().__init__()
        self.levels = levels
        # a slot for each level: where every level is seen once, the sum over ranks adds zeros and is exact
        self.add_state("errors", torch.zeros(len(levels)), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(len(levels)), dist_reduce_fx="sum")

    def update(self, level: Tensor, error: Tensor) -> None:
        """Add the unweighted error of each image, (B,), at its level, int64 (B,)."""
        level = level.to(self.errors.device)
        self.errors.index_add_(0, level, error.float())
        self.counts.index_add_(0, level, torch.ones_like(error, dtype=torch.float32))

    def compute(self) -> dict[str, float | list[float]]:
        """Return the losses; waits for the device."""
        levels, counts = self.levels, self.counts.cpu()
        seen = counts > 0
        error = (self.errors.cpu()[seen] / counts[seen]).float()
        index = levels.bin[seen]
        bins = index.unique()  # an epoch of few images may not reach every bin
        weighted = _mean_by_bin(error * levels.weight[seen], index)[bins]
        return {
            "loss": (weighted * levels.share[bins]).sum().item(),
            "error": _mean_by_bin(error * levels.gain[seen], index)[bins].mean().item(),
            "bins": _mean_by_bin(error, index).tolist(),
        }


def _mean_by_bin(values: Tensor, index: Tensor) -> Tensor:
    count = torch.bincount(index, minlength=len(BINS))
    return torch.bincount(index, weights=values.double(), minlength=len(BINS)) / count
