"""Choose the fixed timesteps and noise of validation, so that curves are smooth and runs can be compared."""

from itertools import pairwise

import torch
from torch import Tensor

from diffusion_lit.diffusion.loss import Coefficients, Diffusion
from diffusion_lit.diffusion.seeds import item_seed

EDGES = (-8.0, -6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0, 8.0)  # of ten bins in log SNR; the outer two are open
BINS = (
    f"below_{EDGES[0]:.0f}",
    *[f"{low:.0f}_to_{high:.0f}" for low, high in pairwise(EDGES)],
    f"above_{EDGES[-1]:.0f}",
)
LEVELS_PER_BIN = 32


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
    """

    def __init__(self, diffusion: Diffusion):
        process = diffusion.process
        log_snr = process.snr.log()
        bin_of = torch.bucketize(log_snr, torch.tensor(EDGES, dtype=log_snr.dtype))
        levels = []
        for k in range(len(BINS)):
            members = (bin_of == k).nonzero()[:, 0]
            if len(members):
                levels.append(members[((torch.arange(LEVELS_PER_BIN) + 0.5) / LEVELS_PER_BIN * len(members)).long()])
        level = torch.stack(levels, dim=1).flatten()  # so that few images already cover every bin
        self.t, self.bin = process.times[level], bin_of[level]
        share = torch.bincount(bin_of, weights=process.density, minlength=len(BINS))
        self.share = share.float() / len(bin_of)
        # x0_hat - x0 = c_out (output - target), and eps_hat - eps = -(alpha / sigma) (x0_hat - x0)
        row = Coefficients(*diffusion.coefficient_table.cpu()[:, level])
        self.gain = diffusion.pointwise_loss(row.c_out * process.snr[level].sqrt())
        self.weight = row.weight

    def __len__(self) -> int:
        return len(self.t)

    def indices_at(self, position: int, count: int) -> Tensor:
        """Return the indices of the levels of `count` images from a position on, int64 (count,)."""
        return torch.arange(position, position + count) % len(self)


def validation_noise(position: int, count: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return the fixed noise of `count` validation images from a position on, float32 (count, *shape)."""
    noise = []
    for k in range(position, position + count):
        generator = torch.Generator().manual_seed(item_seed(0, "validation", k))
        noise.append(torch.randn(shape, generator=generator))
    return torch.stack(noise).to(device)
