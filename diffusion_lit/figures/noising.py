"""From picture to noise: the strip over t, and the panels of what the network makes of it."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion_lit.diffusion.loss import Diffusion, Network
from diffusion_lit.diffusion.seeds import fold
from diffusion_lit.figures.style import save, tiles
from diffusion_lit.figures.subject import Subject
from diffusion_lit.sampling.samplers import size

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the panels, as shares of all levels


def noise_like(x0: Tensor, seed: int) -> Tensor:
    """Standard normal noise of the shape of `x0`, a function of the seed."""
    generator = torch.Generator().manual_seed(fold(seed, "figures"))
    return torch.randn(x0.shape, generator=generator)


def forward_strip(diffusion: Diffusion, x0: Tensor, times: Tensor, seed: int) -> Tensor:
    """x_t of pictures x0 (R, C, H, W) at times (K,), each picture with one noise: (R, K, C, H, W).

    Where noise is added to the whole picture, x_t is scaled to the variance of noise.
    """
    eps = noise_like(x0, seed)
    columns = [diffusion.add_noise(x0, t.expand(len(x0)), eps) / max(1, size(diffusion.table, t)) for t in times]
    return torch.stack(columns, dim=1)


def draw_forward(subject: Subject, columns: int, out: Path) -> list[Path]:
    """forward.png: a picture of each class, and what is left of it at each t."""
    diffusion = subject.diffusion
    levels = torch.linspace(0, diffusion.table.num_train_timesteps - 1, columns).round().long().unique()
    x0 = subject.originals(1)
    x = subject.codec.encode(x0[:, 0])
    noisy = subject.codec.decode(forward_strip(diffusion, x, diffusion.table.times[levels], subject.seed))
    names = ["clean", *[level_name(diffusion, k) for k in levels]]
    title = f"Noising: {subject.name}"
    return [save(tiles(subject.shown(torch.cat([x0, noisy], dim=1)), subject.row_names, names, title), out)]


def level_name(diffusion: Diffusion, k: int) -> str:
    log_snr = round(diffusion.table.snr[k].log().item(), 1) + 0.0  # never -0.0
    return f"t = {diffusion.table.times[k].item():.4g}\nlog snr {log_snr:g}"


class Panels(NamedTuple):
    """Each (B, C, H, W): clean picture, noise, noisy picture, estimates of the noise and of the clean picture."""

    x0: Tensor
    eps: Tensor
    x_t: Tensor
    eps_hat: Tensor
    x0_hat: Tensor


@torch.no_grad()
def panels(net: Network, diffusion: Diffusion, x0: Tensor, t: Tensor, y: Tensor, seed: int) -> Panels:
    """What a network makes of pictures x0 (B, C, H, W) at times t (B,), whatever it predicts.

    eps_hat = (x_t - alpha x0_hat) / sigma, so x0_hat = (x_t - sigma eps_hat) / alpha.
    """
    eps = noise_like(x0[:1], seed).expand_as(x0)  # one noise for all, so that only t differs
    device = diffusion.tables.device
    x0, eps, t, y = (value.to(device) for value in (x0, eps, t, y))
    x_t = diffusion.add_noise(x0, t, eps)
    x0_hat = diffusion.estimate_x0(diffusion.output(net, x_t, t, y), x_t, t)
    alpha, sigma = (values[:, None, None, None] for values in diffusion.row(t)[:2])
    eps_hat = (x_t - alpha * x0_hat) / sigma
    return Panels(*[value.cpu() for value in (x0, eps, x_t, eps_hat, x0_hat)])


def draw_panels(subject: Subject, out: Path) -> list[Path]:
    """panels.png: clean, noise, noisy, predicted noise and predicted picture, a row for each of a few t."""
    model, diffusion = subject.model, subject.model.diffusion  # on the model's device
    levels = [round(share * (diffusion.table.num_train_timesteps - 1)) for share in LEVELS]
    x0 = model.codec.encode(subject.originals(1)[:1, 0]).expand(len(levels), -1, -1, -1)
    y = torch.full((len(levels),), subject.rows[0])
    made = panels(model.net, diffusion, x0, diffusion.table.times[levels], y, subject.seed)
    images = subject.shown(model.codec.decode(torch.stack(made, dim=1)))
    off = (made.eps_hat - made.eps).square().flatten(1).mean(1).sqrt()
    names = [f"{level_name(diffusion, k)}\nnoise off by {rmse:.2f}" for k, rmse in zip(levels, off, strict=True)]
    columns = ["clean", "noise", "noisy at t", "predicted\nnoise", "predicted\nclean"]
    return [save(tiles(images, names, columns, f"What the network sees: {subject.name}"), out)]
