"""What a recipe trains, before it is trained: noise levels, and how much each of them counts in the loss."""

from collections.abc import Iterator

import torch
from torch import Tensor

from diffusion_lit.diffusion.loss import Diffusion
from diffusion_lit.figures.style import BLUE, ORANGE, plots
from diffusion_lit.training.noise_levels import BINS, EDGES

NOISY, CLEAN = -4.0, 4.0  # log snr from which on a picture is hardly more than noise, hardly less than clean
ONE_BIN = 0.9  # share of the weight in one bin that is a fault
UNTRAINED = 1e-4  # share of the weight that is as good as none...
MANY = 0.05  # ...for so large a share of the timesteps


def log_snr(diffusion: Diffusion) -> Tensor:
    """Of each level, float64 (T,); -inf at zero terminal SNR."""
    return diffusion.table.snr.log()


def shares(diffusion: Diffusion) -> tuple[Tensor, Tensor]:
    """Of all timesteps that training draws, and of the loss's weight on the network's own error, how much lies in each
    of the ten bins of log snr; float64 (10,) each, both of sum 1.
    """
    bin_of = torch.bucketize(log_snr(diffusion), torch.tensor(EDGES, dtype=torch.float64))
    density, weight = diffusion.table.density, diffusion.weight.double().cpu()
    count = torch.bincount(bin_of, weights=density, minlength=len(BINS))
    weight = torch.bincount(bin_of, weights=weight * density, minlength=len(BINS))
    return count / count.sum(), weight / weight.sum()


def incoherent(diffusion: Diffusion) -> Iterator[str]:
    """What settings that fit by themselves do together, in words; nothing for a sound recipe."""
    levels, density, weight = log_snr(diffusion), diffusion.table.density, diffusion.weight.double().cpu()
    last = len(levels) - 1
    timesteps, share = shares(diffusion)
    noisy, drawn = density[levels < NOISY].sum() / density.sum(), weight * density
    noisy_share = drawn[levels < NOISY].sum() / drawn.sum()
    if weight[last] == 0:
        yield (
            f"the weighting is 0 at the noisiest timestep ({last}), where sampling starts: that step is never trained; "
            "weighting=truncated_snr or snr_plus_one trains it"
        )
    elif noisy > MANY and noisy_share < UNTRAINED:
        yield (
            f"timesteps of log snr below {NOISY:.0f} are {noisy:.0%} of all and have {noisy_share:.2g} of the weight: "
            "sampling starts where next to nothing is trained; weighting=truncated_snr or min_snr, or another "
            "diffusion.prediction_type, would train it"
        )
    top = int(share.argmax())
    if share[top] > ONE_BIN:
        yield (
            f"{share[top]:.1%} of the weight lies in one bin, log snr {BINS[top]}, with {timesteps[top]:.0%} of the "
            "timesteps: the others hardly count; weighting=min_snr spreads it"
        )
    if levels[last] > NOISY:
        yield (
            f"the noisiest timestep still holds signal (log snr {levels[last]:.1f}), and sampling starts from pure "
            "noise, which is never seen in training: raise diffusion.beta_end or diffusion.num_train_timesteps, or "
            "set diffusion.zero_terminal_snr=true"
        )
    if levels[0] < CLEAN:
        yield (
            f"the cleanest timestep is still noisy (log snr {levels[0]:.1f}), and so will samples be: lower "
            "diffusion.beta_start"
        )


def figure_of(diffusion: Diffusion, title: str):
    """alpha_bar and log snr over t; weight over log snr; shares of timesteps and of weight in the ten bins."""
    figure, axes = plots(2, 2, title)
    (signal, level), (weight, bins) = axes
    levels = log_snr(diffusion)
    t, seen = range(len(levels)), levels.isfinite()
    signal.plot(t, diffusion.table.alpha_bar, color=BLUE)
    signal.set(title="signal kept", xlabel="timestep t", ylabel=r"$\bar\alpha_t$")
    level.plot(t, levels.where(seen, torch.nan), color=BLUE)
    level.set(title="signal to noise", xlabel="timestep t", ylabel="log snr")
    weight.plot(levels[seen], diffusion.weight.cpu()[seen], color=ORANGE)
    weight.set(title=f"loss weight ({diffusion.prediction_type})", xlabel="log snr", ylabel="weight")
    positive = diffusion.weight[diffusion.weight > 0]
    if positive.max() > 20 * positive.min():
        weight.set_yscale("log")
    places, (timesteps, share) = torch.arange(len(BINS)), shares(diffusion)
    bins.bar(places - 0.2, timesteps, 0.4, color=BLUE, label="of timesteps")
    bars = bins.bar(places + 0.2, share, 0.4, color=ORANGE, label="of weight")
    bins.bar_label(bars, [f"{value:.0%}" if value >= 0.005 else "" for value in share], fontsize="x-small", padding=2)
    bins.set_xticks(places, BINS, rotation=45, ha="right")
    bins.set(title="share of each noise level", xlabel="log snr", ylabel="share")
    bins.margins(y=0.12)
    bins.legend(frameon=False)
    return figure
