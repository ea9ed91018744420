"""The forward process on images, and the predictions of a trained network at single noise levels."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion_lit.diffusion.loss import Diffusion, Network
from diffusion_lit.diffusion.seeds import derive_seed
from diffusion_lit.figures.style import plot_tiles, save_figure
from diffusion_lit.figures.subject import Subject
from diffusion_lit.sampling.samplers import total_std

PANEL_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the panels, as fractions of all timesteps


def draw_noise(x0: Tensor, seed: int) -> Tensor:
    """Return standard normal noise of the shape of `x0`, a function of the seed."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "figures"))
    return torch.randn(x0.shape, generator=generator)


def make_noise_strip(diffusion: Diffusion, x0: Tensor, times: Tensor, seed: int) -> Tensor:
    """Return x_t (R, K, C, H, W) of images x0 (R, C, H, W) at times (K,), with one noise for each image.

    Variance-exploding x_t are scaled to unit variance of the noise.
    """
    eps = draw_noise(x0, seed)
    columns = [diffusion.add_noise(x0, t.expand(len(x0)), eps) / max(1, total_std(diffusion.process, t)) for t in times]
    return torch.stack(columns, dim=1)


def draw_forward(subject: Subject, columns: int, out: Path) -> list[Path]:
    """Write forward.png: an image of each class at increasing noise levels."""
    diffusion = subject.diffusion
    levels = torch.linspace(0, diffusion.process.num_train_timesteps - 1, columns).round().long().unique()
    originals = subject.load_originals(1)
    x0 = subject.codec.encode(originals[:, 0])
    strip = make_noise_strip(diffusion, x0, diffusion.process.times[levels], subject.seed)
    images = torch.cat([originals, subject.codec.decode(strip)], dim=1)
    names = ["clean", *[_name_level(diffusion, k) for k in levels]]
    rows = subject.original_names
    return [save_figure(plot_tiles(subject.render(images), rows, names, f"Noising: {subject.name}"), out)]


def _name_level(diffusion: Diffusion, k: int) -> str:
    log_snr = round(diffusion.process.snr[k].log().item(), 1) + 0.0  # never -0.0
    return f"t = {diffusion.process.times[k].item():.4g}\nlog SNR {log_snr:.2g}"


class Prediction(NamedTuple):
    """Inputs and predictions of a network, each (B, C, H, W)."""

    x0: Tensor
    eps: Tensor
    x_t: Tensor
    eps_hat: Tensor
    x0_hat: Tensor


@torch.no_grad()
def predict(net: Network, diffusion: Diffusion, x0: Tensor, t: Tensor, y: Tensor, seed: int) -> Prediction:
    """Return the estimates of noise and clean image of a network with any prediction type.

    eps_hat = (x_t - alpha x0_hat) / sigma, so x0_hat = (x_t - sigma eps_hat) /
    alpha.

    Args:
        net: the network.
        diffusion: its process.
        x0: clean images (B, C, H, W). All get the same noise, so that only t
            differs.
        t: times (B,).
        y: labels (B,), or prompts, see `PromptCondition`.
        seed: seed of the noise.
    """
    eps = draw_noise(x0[:1], seed).expand_as(x0)
    device = diffusion.coefficient_table.device
    x0, eps, t, y = (value.to(device) for value in (x0, eps, t, y))
    x_t = diffusion.add_noise(x0, t, eps)
    x0_hat = diffusion.estimate_x0(diffusion.output(net, x_t, t, y), x_t, t)
    alpha, sigma = (values[:, None, None, None] for values in diffusion.coefficients(t)[:2])
    eps_hat = (x_t - alpha * x0_hat) / sigma
    return Prediction(*[value.cpu() for value in (x0, eps, x_t, eps_hat, x0_hat)])


def draw_panels(subject: Subject, out: Path) -> list[Path]:
    """Write panels.png: clean, noise, noisy, predicted noise and predicted clean image at a few noise levels."""
    model, diffusion = subject.model, subject.model.diffusion
    levels = [round(fraction * (diffusion.process.num_train_timesteps - 1)) for fraction in PANEL_LEVELS]
    x0 = model.codec.encode(subject.load_originals(1)[:1, 0]).expand(len(levels), -1, -1, -1)
    label = "" if subject.has_prompts else subject.rows[0]  # the training image is of no prompt
    y = model.condition.to_tensor([label] * len(levels))
    prediction = predict(model.net, diffusion, x0, diffusion.process.times[levels], y, subject.seed)
    images = subject.render(model.codec.decode(torch.stack(prediction, dim=1)))
    errors = (prediction.eps_hat - prediction.eps).square().flatten(1).mean(1).sqrt()
    names = [f"{_name_level(diffusion, k)}\nnoise RMSE {error:.2f}" for k, error in zip(levels, errors, strict=True)]
    columns = ["clean", "noise", "noisy", "predicted\nnoise", "predicted\nclean"]
    return [save_figure(plot_tiles(images, names, columns, f"Predictions: {subject.name}"), out)]
