"""Loss weight of every noise level and rounding error of half precision, for several recipes in one figure."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from diffusion_lit.diffusion.loss import Coefficients, Diffusion
from diffusion_lit.diffusion.schedules import Process
from diffusion_lit.figures.style import create_axes

ENDS = 10  # timesteps at either end whose share of the weight is reported
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def compute_loss_weights(diffusion: Diffusion) -> tuple[Tensor, Tensor]:
    """Return the weight of each level, times how often training draws it, on two errors.

    Returns:
        Weights on the network's own prediction error and on the x0 error, float64
        (T,) each.
    """
    own = diffusion.weight.double().cpu() * diffusion.process.density
    return own, own / diffusion.pointwise_loss(Coefficients(*diffusion.coefficient_table.double().cpu()).c_out)


def compute_end_shares(diffusion: Diffusion) -> tuple[float, float]:
    """Return the shares of the weight that the `ENDS` noisiest and the `ENDS` cleanest timesteps have."""
    own, _ = compute_loss_weights(diffusion)
    share = own / own.sum()
    return share[-ENDS:].sum().item(), share[:ENDS].sum().item()


def compute_rounding(table: Process, precision: torch.dtype, from_alpha_bar: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return the relative rounding errors of alpha, of sigma and of x_t (RMS for unit variance), (T,) each.

    Args:
        table: the noise levels in float64.
        precision: of the rounded tables.
        from_alpha_bar: round alpha^2 and compute sigma = sqrt(1 - alpha^2) from it,
            as diffusers' `add_noise` does for half-precision images. Else alpha and
            sigma are rounded.
    """
    alpha, sigma = table.alpha.to(precision), table.sigma.to(precision)
    if from_alpha_bar:
        alpha_bar = (table.alpha**2).to(precision)
        alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    alpha_error, sigma_error = alpha.double() - table.alpha, sigma.double() - table.sigma
    std = (table.alpha**2 + table.sigma**2).sqrt()
    of_alpha = torch.where(alpha_error == 0, 0, alpha_error / table.alpha).abs()  # alpha may be 0
    return of_alpha, (sigma_error / table.sigma).abs(), (alpha_error**2 + sigma_error**2).sqrt() / std


def _rounding_modes(table: Process) -> tuple[bool, ...]:
    """Return the values of `from_alpha_bar` that make sense: sigma follows from alpha in variance-preserving tables."""
    preserves_variance = torch.allclose(table.alpha**2 + table.sigma**2, torch.ones_like(table.alpha))
    return (False, True) if preserves_variance else (False,)


def describe_loss(diffusion: Diffusion, name: str) -> Iterator[str]:
    """Yield log lines with the terminal SNR, the weight at both ends and the largest rounding errors."""
    last, (noisy, clean) = len(diffusion.weight) - 1, compute_end_shares(diffusion)
    even, table = ENDS / len(diffusion.weight), diffusion.process
    yield (
        f"loss       {name}: terminal SNR {table.snr[last]:.3g} (timestep {last}), weight of the {ENDS} noisiest "
        f"timesteps {noisy:.2g}, of the {ENDS} cleanest {clean:.2g} (uniform: {even:.2g})"
    )
    for precision, dtype in PRECISIONS.items():
        errors = [
            "alpha {:.1e}, sigma {:.1e}, x_t {:.1e}".format(*[e.max() for e in compute_rounding(table, dtype, mode)])
            for mode in _rounding_modes(table)
        ]
        yield f"rounding   {precision:<8} {' | from alpha^2: '.join(errors)}"


def plot_losses(recipes: Mapping[str, Diffusion], title: str):
    """Return a Figure with the weights of each recipe and the rounding errors of the first one, over log SNR.

    Above: the weight, scaled to mean 1, on the network's prediction error and on
    the x0 error. Below: the relative error of sigma and of x_t in each precision;
    dotted lines are `from_alpha_bar`.
    """
    from matplotlib import colormaps

    colors = colormaps["tab10"]
    figure, axes = create_axes(2, 2, title)
    (own, clean), below = axes
    for k, (name, diffusion) in enumerate(recipes.items()):
        levels = diffusion.process.snr.log()
        finite = levels.isfinite()
        for ax, weight in zip((own, clean), compute_loss_weights(diffusion), strict=True):
            scaled = (weight / weight[weight.isfinite()].mean())[finite]
            ax.plot(levels[finite], scaled, label=name, color=colors(k % 10), ls=("-", "--")[k // 10 % 2])
    for ax, error in ((own, "the prediction error"), (clean, "the x0 error")):
        ax.set(title=f"weight on {error}", xlabel="log SNR", ylabel="weight, mean 1", yscale="log")
    own.legend(frameon=False, fontsize="small")
    table = next(iter(recipes.values())).process
    levels = table.snr.log()
    for ax, index, name in zip(below, (1, 2), ("sigma", "x_t"), strict=True):
        for k, (precision, dtype) in enumerate(PRECISIONS.items()):
            for mode, line in zip(_rounding_modes(table), "-:", strict=False):
                error = compute_rounding(table, dtype, mode)[index]
                label = None if mode else precision
                ax.plot(levels, error.where(error > 0, torch.nan), line, color=colors(k), lw=1, label=label)
        ax.set(title=f"rounding of {name} (dotted: from alpha^2)", xlabel="log SNR", yscale="log")
        ax.set_ylabel("relative error")
    below[0].legend(frameon=False, fontsize="small")
    return figure
