"""Noise levels of a recipe and their weights in the loss, before any training."""

from collections.abc import Iterator

import torch
from torch import Tensor

from diffusion_lit.diffusion.loss import Diffusion
from diffusion_lit.figures.style import ALPHA_BAR, BLUE, ORANGE, create_axes
from diffusion_lit.training.noise_levels import BINS, EDGES

NOISY, CLEAN = -4.0, 4.0  # log SNR below which an image is almost pure noise, above which it is almost clean
MAX_BIN_SHARE = 0.9  # of the weight in one bin
MIN_WEIGHT_SHARE = 1e-4  # of the noisy timesteps, where they are more than...
MIN_TIMESTEP_SHARE = 0.05  # ...this share of all timesteps


def compute_bin_shares(diffusion: Diffusion) -> tuple[Tensor, Tensor]:
    """Return the shares of training timesteps and of loss weight that fall into each bin of log SNR.

    The weight is that of the network's own prediction error, times how often
    training draws the timestep.

    Returns:
        Two float64 tensors (bins,), each of sum 1.
    """
    bins = torch.bucketize(diffusion.process.snr.log(), torch.tensor(EDGES, dtype=torch.float64))
    density, weight = diffusion.process.density, diffusion.weight.double().cpu()
    count = torch.bincount(bins, weights=density, minlength=len(BINS))
    weight = torch.bincount(bins, weights=weight * density, minlength=len(BINS))
    return count / count.sum(), weight / weight.sum()


def find_schedule_faults(diffusion: Diffusion) -> Iterator[str]:
    """Yield a message for each way in which schedule, prediction type and weighting do not fit together."""
    levels, density, weight = diffusion.process.snr.log(), diffusion.process.density, diffusion.weight.double().cpu()
    last = len(levels) - 1
    timesteps, share = compute_bin_shares(diffusion)
    noisy, sampled = density[levels < NOISY].sum() / density.sum(), weight * density
    noisy_share = sampled[levels < NOISY].sum() / sampled.sum()
    if weight[last] == 0:
        yield (
            f"the weighting is 0 at the noisiest timestep ({last}), where sampling starts, so it is never trained. "
            "Use weighting=truncated_snr or snr_plus_one"
        )
    elif noisy > MIN_TIMESTEP_SHARE and noisy_share < MIN_WEIGHT_SHARE:
        yield (
            f"timesteps of log SNR below {NOISY:.0f} are {noisy:.0%} of all and have {noisy_share:.2g} of the weight, "
            "so sampling starts where almost nothing is trained. Use weighting=truncated_snr or min_snr, or another "
            "diffusion.prediction_type"
        )
    top = int(share.argmax())
    if share[top] > MAX_BIN_SHARE:
        yield (
            f"{share[top]:.1%} of the weight is in one bin, log SNR {BINS[top].replace('_', ' ')}, with "
            f"{timesteps[top]:.0%} of the timesteps. Use weighting=min_snr to spread it"
        )
    if levels[last] > NOISY:
        yield (
            f"the noisiest timestep still holds signal (log SNR {levels[last]:.1f}), but sampling starts from pure "
            "noise. Raise diffusion.beta_end or diffusion.num_train_timesteps, or set "
            "diffusion.zero_terminal_snr=true"
        )
    if levels[0] < CLEAN:
        yield (
            f"the cleanest timestep is still noisy (log SNR {levels[0]:.1f}), and so will be the samples. Lower "
            "diffusion.beta_start"
        )


def plot_schedule(diffusion: Diffusion, title: str):
    """Return a Figure of alpha_bar and log SNR over t, weight over log SNR, and the shares of each bin."""
    figure, axes = create_axes(2, 2, title)
    (signal, level), (weight, bins) = axes
    levels = diffusion.process.snr.log()
    t, finite = range(len(levels)), levels.isfinite()  # -inf at zero terminal SNR
    signal.plot(t, diffusion.process.alpha_bar, color=BLUE)
    signal.set(title="signal", xlabel="timestep t", ylabel=ALPHA_BAR)
    level.plot(t, levels.where(finite, torch.nan), color=BLUE)
    level.set(title="signal-to-noise ratio", xlabel="timestep t", ylabel="log SNR")
    weight.plot(levels[finite], diffusion.weight.cpu()[finite], color=ORANGE)
    weight.set(title=f"loss weight ({diffusion.prediction_type})", xlabel="log SNR", ylabel="weight")
    positive = diffusion.weight[diffusion.weight > 0]
    if positive.max() > 20 * positive.min():
        weight.set_yscale("log")
    x, (timesteps, share) = torch.arange(len(BINS)), compute_bin_shares(diffusion)
    bins.bar(x - 0.2, timesteps, 0.4, color=BLUE, label="timesteps")
    bars = bins.bar(x + 0.2, share, 0.4, color=ORANGE, label="weight")
    bins.bar_label(bars, [f"{value:.0%}" if value >= 0.005 else "" for value in share], fontsize="x-small", padding=2)
    bins.set_xticks(x, [name.replace("_", " ") for name in BINS], rotation=45, ha="right")
    bins.set(title="share of each noise level", xlabel="log SNR", ylabel="share")
    bins.margins(y=0.12)
    bins.legend(frameon=False)
    return figure
