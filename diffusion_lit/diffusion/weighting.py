"""Loss weightings: how much each noise level contributes to the loss.

A weighting returns the factor on the error of the network's output. `Uniform` returns 1: plain
MSE on what the network predicts. All others are defined as w(snr) on the x0 error and converted
by `gain`, the ratio of x0 error to output error: c_out^2 for squared errors (1 / snr for epsilon,
1 for sample, 1 / (snr + 1) for v), |c_out| for absolute ones. So each has its published form for
every prediction type. All tensors have the shape of `snr`, (T,) or (B,).

To add a weighting, write a class here and a file in `conf/weighting`.
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
    """w = snr: the plain epsilon MSE, whatever is predicted (Salimans & Ho 2022, section 4)."""

    def __call__(self, snr: Tensor, gain: Tensor) -> Tensor:
        return snr * gain


@dataclass(frozen=True)
class TruncatedSNR:
    """w = max(snr, 1): high noise levels keep a weight (Salimans & Ho 2022, section 4)."""

    def __call__(self, snr: Tensor, gain: Tensor) -> Tensor:
        return snr.clamp(min=1.0) * gain


@dataclass(frozen=True)
class SNRPlusOne:
    """w = snr + 1: the plain v MSE, whatever is predicted (Salimans & Ho 2022, section 4)."""

    def __call__(self, snr: Tensor, gain: Tensor) -> Tensor:
        return (snr + 1.0) * gain


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
    """w = 1: plain MSE on x0, whatever is predicted."""

    def __call__(self, snr: Tensor, gain: Tensor) -> Tensor:
        return gain
