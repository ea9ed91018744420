"""Loss weightings: how much each noise level contributes to the loss.

A weighting returns the factor on the error of the network's output. `Uniform` returns
1: the plain error of what the network predicts. All others are defined as w(snr) on
the x0 error, which is `gain` times the output error: they return w(snr) gain. With
`loss=mse`, gain is c_out^2, for variance-preserving processes 1 / snr (epsilon), 1
(sample) or 1 / (snr + 1) (v), and each weighting has its published form for every
prediction type. With `loss=l1`, gain is |c_out|, and w(snr) is the weight on the
absolute x0 error. `snr` and `gain` have one shape: (T,) at the levels of a process,
(B,) at the times of a batch.

To add a weighting, write a class here and a file in `conf/weighting`, see
docs/extending.md.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Uniform:
    """1 on the error of the output: L_simple for epsilon (Ho et al. 2020, eq. 14)."""

    def __call__(self, snr: Tensor, gain: Tensor) -> Tensor:
        return torch.ones_like(snr)


@dataclass(frozen=True)
class SNR:
    """w = snr: with `loss=mse` the plain epsilon MSE (Salimans & Ho 2022, section 4)."""

    def __call__(self, snr: Tensor, gain: Tensor) -> Tensor:
        return snr * gain


@dataclass(frozen=True)
class TruncatedSNR:
    """w = max(snr, 1), at most `maximum`: high noise levels keep a weight (Salimans & Ho 2022, section 4)."""

    maximum: float | None = None

    def __call__(self, snr: Tensor, gain: Tensor) -> Tensor:
        return snr.clamp(min=1.0, max=self.maximum) * gain


@dataclass(frozen=True)
class SNRPlusOne:
    """w = snr + 1: with `loss=mse` the plain v MSE (Salimans & Ho 2022, section 4)."""

    def __call__(self, snr: Tensor, gain: Tensor) -> Tensor:
        return (snr + 1.0) * gain


@dataclass(frozen=True)
class Velocity:
    """w = (1 + sqrt snr)^2: with `loss=mse` the plain velocity MSE, whatever is predicted (Li & He 2025, table 1)."""

    def __call__(self, snr: Tensor, gain: Tensor) -> Tensor:
        return (1.0 + snr.sqrt()) ** 2 * gain


@dataclass(frozen=True)
class MinSNR:
    """w = min(snr, gamma): nearly clean images get no more than gamma (Hang et al. 2023, eq. 8)."""

    gamma: float = 5.0

    def __call__(self, snr: Tensor, gain: Tensor) -> Tensor:
        return snr.clamp(max=self.gamma) * gain


@dataclass(frozen=True)
class SoftMinSNR:
    """w = snr gamma / (snr + gamma): a smooth min-SNR (Crowson et al. 2024, section 3.3)."""

    gamma: float = 5.0

    def __call__(self, snr: Tensor, gain: Tensor) -> Tensor:
        return snr * self.gamma / (snr + self.gamma) * gain


@dataclass(frozen=True)
class P2:
    """w = snr / (k + snr)^gamma: epsilon MSE with less weight on nearly clean images (Choi et al. 2022, eq. 8)."""

    gamma: float = 1.0
    k: float = 1.0

    def __call__(self, snr: Tensor, gain: Tensor) -> Tensor:
        return snr / (self.k + snr) ** self.gamma * gain


@dataclass(frozen=True)
class Sigmoid:
    """w = snr sigmoid(bias - log snr) (Kingma & Gao 2023; Hoogeboom et al. 2024).

    The same as `SoftMinSNR` with gamma = e^bias.
    """

    bias: float = 0.0

    def __call__(self, snr: Tensor, gain: Tensor) -> Tensor:
        return snr * torch.sigmoid(self.bias - snr.log()) * gain


@dataclass(frozen=True)
class X0:
    """w = 1: the plain error of x0, whatever is predicted."""

    def __call__(self, snr: Tensor, gain: Tensor) -> Tensor:
        return gain
