"""Loss weightings: how much each noise level counts.

A weighting gives the factor on the network's own squared error. `Uniform` is 1: plain MSE on whatever the network
predicts. All others are defined once, as w(snr) on the x0 error, and carried to the output by `gain`, what an error of
the output counts on x0: c_out^2 for squared errors (1 / snr for epsilon, 1 for sample, 1 / (snr + 1) for v), |c_out|
for absolute ones. So each is the published form for every prediction type. Shapes: (T,) in, (T,) out.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Uniform:
    """1 on the network's own error: L_simple for epsilon (Ho et al. 2020, eq. 14)."""

    def __call__(self, snr: Tensor, gain: Tensor) -> Tensor:
        return torch.ones_like(snr)


@dataclass(frozen=True)
class SNR:
    """w = snr on x0: the plain (mse) epsilon loss whatever is predicted (Salimans & Ho 2022, section 4)."""

    def __call__(self, snr: Tensor, gain: Tensor) -> Tensor:
        return snr * gain


@dataclass(frozen=True)
class TruncatedSNR:
    """w = max(snr, 1) (Salimans & Ho 2022, section 4): high noise levels keep a weight."""

    def __call__(self, snr: Tensor, gain: Tensor) -> Tensor:
        return snr.clamp(min=1.0) * gain


@dataclass(frozen=True)
class SNRPlusOne:
    """w = snr + 1: the plain (mse) v loss whatever is predicted (Salimans & Ho 2022, section 4)."""

    def __call__(self, snr: Tensor, gain: Tensor) -> Tensor:
        return (snr + 1.0) * gain


@dataclass(frozen=True)
class MinSNR:
    """w = min(snr, gamma) (Hang et al. 2023, eq. 8): easy, nearly clean images stop counting more."""

    gamma: float = 5.0

    def __call__(self, snr: Tensor, gain: Tensor) -> Tensor:
        return snr.clamp(max=self.gamma) * gain


@dataclass(frozen=True)
class SoftMinSNR:
    """w = snr gamma / (snr + gamma): min-SNR without its corner (Crowson et al. 2024, section 3.3)."""

    gamma: float = 5.0

    def __call__(self, snr: Tensor, gain: Tensor) -> Tensor:
        return snr * self.gamma / (snr + self.gamma) * gain


@dataclass(frozen=True)
class P2:
    """w = snr / (k + snr)^gamma: epsilon loss with nearly clean images held down (Choi et al. 2022, eq. 8)."""

    gamma: float = 1.0
    k: float = 1.0

    def __call__(self, snr: Tensor, gain: Tensor) -> Tensor:
        return snr / (self.k + snr) ** self.gamma * gain


@dataclass(frozen=True)
class Sigmoid:
    """w = snr sigmoid(bias - log snr) (Kingma & Gao 2023; Hoogeboom et al. 2024): soft min-SNR of gamma = e^bias."""

    bias: float = 0.0

    def __call__(self, snr: Tensor, gain: Tensor) -> Tensor:
        return snr * torch.sigmoid(self.bias - snr.log()) * gain


@dataclass(frozen=True)
class X0:
    """w = 1: plain MSE on x0 whatever is predicted."""

    def __call__(self, snr: Tensor, gain: Tensor) -> Tensor:
        return gain
