"""The loss laboratory: how much every noise level counts, and what rounding does to it, of recipes side by side."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from diffusion_lit.diffusion.loss import Diffusion, Row
from diffusion_lit.diffusion.schedules import Process
from diffusion_lit.figures.schedule import log_snr
from diffusion_lit.figures.style import plots

ENDS = 10  # timesteps at either end whose share of the weight is told
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def weights(diffusion: Diffusion) -> tuple[Tensor, Tensor]:
    """The weight of each level on the network's own error, times how often training draws the level, and what that is
    on the error of x0; float64 (T,).
    """
    own = diffusion.weight.double().cpu() * diffusion.table.density
    return own, own / diffusion.distance(Row(*diffusion.tables.double().cpu()).c_out)


def shares_of_the_ends(diffusion: Diffusion) -> tuple[float, float]:
    """Of the weight on the network's own error what lies in the noisiest and in the cleanest `ENDS` timesteps."""
    own, _ = weights(diffusion)
    share = own / own.sum()
    return share[-ENDS:].sum().item(), share[:ENDS].sum().item()


def ways_of(table: Process) -> tuple[bool, ...]:
    """`from_alpha_bar` of `rounding`, as far as it has a meaning: sigma is made of alpha where variance is kept."""
    kept = torch.allclose(table.alpha**2 + table.sigma**2, torch.ones_like(table.alpha))
    return (False, True) if kept else (False,)


def rounding(table: Process, precision: torch.dtype, from_alpha_bar: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Relative errors of alpha, of sigma, and of x_t for x0 and eps of unit variance (root mean square), (T,) each.

    They are those of tables held in a precision; or, `from_alpha_bar`, of alpha^2 held in it and sigma made of that,
    sqrt(1 - alpha^2), as diffusers' `add_noise` does it for half precision images: there a little noise is lost whole.
    """
    alpha, sigma = table.alpha.to(precision), table.sigma.to(precision)
    if from_alpha_bar:
        alpha, sigma = (table.alpha**2).to(precision).sqrt(), (1 - (table.alpha**2).to(precision)).sqrt()
    off_alpha, off_sigma = alpha.double() - table.alpha, sigma.double() - table.sigma
    size = (table.alpha**2 + table.sigma**2).sqrt()
    of_alpha = torch.where(off_alpha == 0, 0, off_alpha / table.alpha).abs()  # alpha may be 0
    return of_alpha, (off_sigma / table.sigma).abs(), (off_alpha**2 + off_sigma**2).sqrt() / size


def told(diffusion: Diffusion, name: str) -> Iterator[str]:
    """The numbers, line by line."""
    last, (noisy, clean) = len(diffusion.weight) - 1, shares_of_the_ends(diffusion)
    even, table = ENDS / len(diffusion.weight), diffusion.table
    yield (
        f"loss       {name}: terminal snr {table.snr[last]:.3g} (timestep {last}); of the weight {noisy:.2g} "
        f"is in the {ENDS} noisiest timesteps, {clean:.2g} in the {ENDS} cleanest (evenly: {even:.2g})"
    )
    for precision, dtype in PRECISIONS.items():
        errors = [
            "alpha {:.1e}, sigma {:.1e}, x_t {:.1e}".format(*[error.max() for error in rounding(table, dtype, way)])
            for way in ways_of(table)
        ]
        yield f"rounding   {precision:<8} {'; made of alpha^2: '.join(errors)}"


def figure_of(recipes: Mapping[str, Diffusion], title: str):
    """Weight on the network's own error and on that of x0, each of mean 1, over log snr; a line for each recipe. Below
    the errors of sigma and of x_t in each precision, of the first recipe, tables held and (dotted) made of alpha^2.
    """
    from matplotlib import colormaps

    figure, axes = plots(2, 2, title)
    (own, clean), below = axes
    for k, (name, diffusion) in enumerate(recipes.items()):
        levels, style = log_snr(diffusion), {"color": colormaps["tab10"](k % 10), "ls": ("-", "--")[k // 10 % 2]}
        seen = levels.isfinite()
        for ax, weight in zip((own, clean), weights(diffusion), strict=True):
            ax.plot(levels[seen], (weight / weight[weight.isfinite()].mean())[seen], label=name, **style)
    for ax, error in ((own, "the network's own error"), (clean, "the error of x0")):
        ax.set(title=f"weight on {error}", xlabel="log snr", ylabel="weight, mean 1", yscale="log")
    own.legend(frameon=False, fontsize="small")
    table = next(iter(recipes.values())).table
    levels = table.snr.log()
    for ax, which, word in zip(below, (1, 2), ("sigma", "x_t"), strict=True):
        for k, (precision, dtype) in enumerate(PRECISIONS.items()):
            for way, line in zip(ways_of(table), "-:", strict=False):
                error = rounding(table, dtype, way)[which]
                ax.plot(levels, error.where(error > 0, torch.nan), line, color=colormaps["tab10"](k), lw=1,
                        label=None if way else precision)  # fmt: skip
        ax.set(title=f"rounding of {word} (dotted: made of alpha^2)", xlabel="log snr", yscale="log")
        ax.set_ylabel("relative error")
    below[0].legend(frameon=False, fontsize="small")
    return figure
