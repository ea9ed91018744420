"""Choose the fixed timesteps and noise of validation, so that curves are smooth and runs can be compared."""

import math
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from diffusion_lit.data.device_images import copy_to_device
from diffusion_lit.diffusion.loss import Coefficients, Diffusion
from diffusion_lit.diffusion.seeds import item_seed
from diffusion_lit.system.errors import ConfigError

EDGES = (-8.0, -6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0, 8.0)  # of ten bins in log SNR; the outer two are open
BINS = (
    f"below_{EDGES[0]:.0f}",
    *[f"{low:.0f}_to_{high:.0f}" for low, high in pairwise(EDGES)],
    f"above_{EDGES[-1]:.0f}",
)
LEVELS_PER_BIN = 32
GRAY_LEVEL = 2 / 255  # distance of two 8-bit levels in [-1, 1]


class ValidationLevels:
    """The noise levels of validation: `LEVELS_PER_BIN` in every bin of log SNR that the process reaches.

    The validation image at position p has level p mod len(self) and noise that is a
    function of p.

    Attributes:
        t: times, (L,).
        bin: bin of each level, int64 (L,).
        weight: loss weight of each level, (L,).
        gain: factor from the error of the network's output to that of the noise estimate,
            (L,).
        share: probability that a time drawn in training lies in each bin, (10,).
        bound: factor from the output's squared error to its part of the variational bound in
            continuous time, nats per dimension, (L,): the width in log SNR that the level stands
            for, over 2, times the gain (Kingma et al. 2021, eq. 18). The part of a bin is the
            mean over its levels.
        prior: factor from the mean square of an image to the prior term of the bound.
        reconstruction: upper limit of the reconstruction term, nats per dimension.
        is_squared: whether the error is squared and of all levels, as the bound needs it.
        empty: names of the bins of `val/error` that the process does not reach.

    Args:
        diffusion: process, prediction type and weighting.
        indices: of the levels of the process that a student has, int64; None for all. Then there
            is no variational bound.
    """

    def __init__(self, diffusion: Diffusion, indices: Tensor | None = None):
        process = diffusion.process
        density = process.density if indices is None else torch.bincount(indices, minlength=len(process.times))
        log_snr = process.snr.log()
        bin_of = torch.bucketize(log_snr, torch.tensor(EDGES, dtype=log_snr.dtype))
        levels, widths = [], []
        width = _integration_widths(process.snr)
        for k in range(len(BINS)):
            is_member = (bin_of == k) if indices is None else (bin_of == k) & (density > 0)
            members = is_member.nonzero()[:, 0]
            if len(members):
                levels.append(members[((torch.arange(LEVELS_PER_BIN) + 0.5) / LEVELS_PER_BIN * len(members)).long()])
                widths.append(_merge_widths(width[members]))
        level = torch.stack(levels, dim=1).flatten()  # so that few images already cover every bin
        self.t, self.bin = process.times[level], bin_of[level]
        share = torch.bincount(bin_of, weights=density, minlength=len(BINS))
        self.share = share.float() / density.sum()
        # x0_hat - x0 = c_out (output - target), and eps_hat - eps = -(alpha / sigma) (x0_hat - x0)
        row = Coefficients(*diffusion.coefficient_table.cpu()[:, level])
        self.gain = diffusion.pointwise_loss(row.c_out * process.snr[level].sqrt())
        self.weight = row.weight
        self.empty = [name for k, name in enumerate(BINS) if 0 < k < len(BINS) - 1 and k not in bin_of]
        self.bound = torch.stack(widths, dim=1).flatten() / 2 * row.c_out.double() ** 2 * process.snr[level]
        self.prior = process.snr[process.snr > 0][-1].item() / 2
        self.reconstruction = bound_reconstruction(process.snr[_first_level(process.snr)].item() ** -0.5)
        self.is_squared = diffusion.pointwise_loss is torch.square and indices is None

    def __len__(self) -> int:
        return len(self.t)

    def indices_at(self, position: int, count: int) -> Tensor:
        """Return the indices of the levels of `count` images from a position on, int64 (count,)."""
        return torch.arange(position, position + count) % len(self)


def _first_level(snr: Tensor) -> int:
    """Return the first level whose noise is half a gray level, where every process begins its bound.

    Raises:
        ConfigError: if no level has that much.
    """
    if not len(noisy := (snr <= (2 / GRAY_LEVEL) ** 2).nonzero()):
        raise ConfigError("diffusion: no noise level reaches half a gray level. Raise sigma_max or beta_end")
    return int(noisy[0])


def _integration_widths(snr: Tensor) -> Tensor:
    """Return the weights of the trapezoid rule over log SNR, (T,), down to the last level with a trace of the image."""
    first, last, width = _first_level(snr), int((snr > 0).sum()) - 1, torch.zeros_like(snr)
    drop = -snr[first : last + 1].log().diff()
    width[first:last] += drop / 2
    width[first + 1 : last + 1] += drop / 2
    return width


def _merge_widths(width: Tensor) -> Tensor:
    """Return `LEVELS_PER_BIN` widths, whose mean is the sum of the widths of the levels of a bin, (n,)."""
    total = np.concatenate([[0.0], width.cumsum(0).numpy()])
    ends = np.linspace(0, len(width), LEVELS_PER_BIN + 1)
    return torch.from_numpy(np.diff(np.interp(ends, np.arange(len(total)), total))) * LEVELS_PER_BIN


def bound_reconstruction(sigma: float) -> float:
    """Return an upper limit of E[-log p(x | z)], nats, of an 8-bit value x and z = x + sigma eps.

    p is q(z | x) normalized over the gray levels (Kingma et al. 2021, eq. 12); here over levels
    without ends, which are more.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(64)
    offset = np.arange(-255, 256)[:, None] * GRAY_LEVEL / sigma
    log_sum = np.logaddexp.reduce(-offset * nodes - offset**2 / 2, axis=0)
    return float(weights @ log_sum / math.sqrt(2 * math.pi))


def validation_noise(position: int, count: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return the fixed noise of `count` validation images from a position on, float32 (count, *shape)."""
    noise = []
    for k in range(position, position + count):
        generator = torch.Generator().manual_seed(item_seed(0, "validation", k))
        noise.append(torch.randn(shape, generator=generator))
    return copy_to_device(torch.stack(noise), device)
