"""Held-out loss by noise level: the same images, timesteps and noise each time, so that curves are smooth, and one
number by which runs can be compared."""

from itertools import pairwise

import torch
from torch import Tensor

from diffusion_lit.data.store import ImageStore
from diffusion_lit.diffusion.loss import Diffusion, Network, Row
from diffusion_lit.diffusion.seeds import fold
from diffusion_lit.imaging.grids import to_float

EDGES = (-8.0, -6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0, 8.0)  # of ten bins in log snr, the outer ones open
BINS = (
    f"<{EDGES[0]:.0f}",
    *[f"{low:.0f}..{high:.0f}" for low, high in pairwise(EDGES)],
    f">{EDGES[-1]:.0f}",
)
PER_BIN = 32  # probes in a bin


class Probe:
    """Fixed held-out probes, `PER_BIN` for every bin of log snr that the process reaches.

    `losses` gives the weighted loss expected over times as training draws them (in a bin: over its levels evenly), the
    unweighted error in each bin (NaN where the process has no level), and the mean over the bins of the error of the
    noise estimate eps_hat = (x_t - alpha x0_hat) / sigma. It measures the probes in `parts`, which several ranks can
    share out.

    The last one does not depend on weighting, prediction type or how many timesteps a schedule spends where. With
    loss=mse, a uniform mean over log snr of |eps - eps_hat|^2 is the diffusion part of the variational bound up to a
    factor and the ends of the range (Kingma et al. 2021, section 5), which differ between schedules: compare those
    that reach the same bins.
    """

    def __init__(self, store: ImageStore, diffusion: Diffusion, batch_size: int = 128):
        log_snr = diffusion.table.snr.log()
        bin_of = torch.bucketize(log_snr, torch.tensor(EDGES, dtype=log_snr.dtype))
        generator = torch.Generator().manual_seed(fold(0, "probe"))
        t = []
        for k in range(len(BINS)):
            members = (bin_of == k).nonzero()[:, 0]
            if len(members):
                t.append(members[((torch.arange(PER_BIN) + 0.5) / PER_BIN * len(members)).long()])
        level = torch.cat(t)
        self.t, self.bin = diffusion.table.times[level], bin_of[level]
        share = torch.bincount(bin_of, weights=diffusion.table.density, minlength=len(BINS))
        self.share = share.float() / len(bin_of)
        order = torch.randperm(len(store), generator=generator).repeat(-(-len(self.t) // len(store)))
        index = order[torch.arange(len(self.t))]
        self.image = torch.from_numpy(store.images[index.numpy()])
        self.y = torch.from_numpy(store.labels[index.numpy()])
        self.eps = torch.randn(self.image.shape, generator=generator)
        self.diffusion = diffusion
        self.parts = [slice(start, start + batch_size) for start in range(0, len(self.t), batch_size)]
        # eps_hat - eps = -alpha / sigma (x0_hat - x0), and an error of the output is c_out times it on x0
        row = Row(*diffusion.tables.cpu()[:, level])
        self.gain = diffusion.distance(row.c_out * diffusion.table.snr[level].sqrt())
        self.weight = row.weight

    @torch.no_grad()
    def errors(self, net: Network, part: slice) -> Tensor:
        """Unweighted error of each probe of a part, float32 on the CPU."""
        device = self.diffusion.tables.device
        x0, t, eps, y = (v[part].to(device) for v in (self.image, self.t, self.eps, self.y))
        return self.diffusion.error(net, to_float(x0), t, eps, y).cpu()

    def losses(self, net: Network) -> tuple[float, list[float], float]:
        """(weighted loss, unweighted error in each of the ten bins, mean error of the noise estimate)."""
        return self.summed_up([self.errors(net, part) for part in self.parts])

    def summed_up(self, errors: list[Tensor]) -> tuple[float, list[float], float]:
        """`losses` from the errors of all parts."""
        error = torch.cat(errors)
        weighted = self._by_bin(error * self.weight)
        loss = torch.where(self.share > 0, weighted, 0.0).mul(self.share).sum()  # bins without timesteps are NaN
        noise_error = self._by_bin(error * self.gain)[self.bin.unique()].mean()
        return loss.item(), self._by_bin(error).tolist(), noise_error.item()

    def _by_bin(self, values: Tensor) -> Tensor:
        count = torch.bincount(self.bin, minlength=len(BINS))
        return torch.bincount(self.bin, weights=values.double(), minlength=len(BINS)) / count
