"""A data set, a network, a weighting and a sampler outside of diffusion_lit; see README.md."""

from dataclasses import dataclass

import numpy as np
import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from diffusion_lit.data.sources.data_source import Split


class Stripes:
    """A data source: `class_names`, and `splits()` of images (paths, or uint8 arrays (N, H, W, C)) and labels.

    Args:
        image_size: pixels.
        num_images: number of images; a fifth is the validation split.
    """

    def __init__(self, image_size: int, num_images: int = 400):
        self.size, self.num_images = image_size, num_images
        self.class_names = ["across", "down"]

    def splits(self) -> dict[str, Split]:
        random, labels = np.random.default_rng(0), np.arange(self.num_images, dtype=np.int64) % 2
        waves = np.sin(np.arange(self.size) * random.uniform(0.5, 1.5, (self.num_images, 1)) + labels[:, None])
        across = np.repeat(waves[:, :, None], self.size, 2)
        images = np.where(labels[:, None, None] == 0, across, across.transpose(0, 2, 1))
        images = ((images + 1) * 127.5).astype(np.uint8)[..., None].repeat(3, -1)
        num_val = self.num_images // 5
        return {
            "train": Split(images[:-num_val], labels[:-num_val]),
            "val": Split(images[-num_val:], labels[-num_val:]),
        }


class Plain(nn.Module):
    """A network: `forward(x_t (B, C, H, W), t (B,), y (B,)) -> (B, C, H, W)`; y = num_classes is the null label.

    Args:
        width: channels of its convolutions.
    """

    def __init__(self, channels: int, num_classes: int, width: int = 32):
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.time = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width))
        self.table = nn.Embedding(num_classes + 1, width)
        self.middle = nn.Sequential(nn.SiLU(), nn.Conv2d(width, width, 3, padding=1), nn.SiLU())
        self.last = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        embedding = self.time(t[:, None].float() / 1000) + self.table(y)
        return self.last(self.middle(self.first(x_t) + embedding[:, :, None, None]))


@dataclass(frozen=True)
class Middle:
    """A weighting, w = exp(-(log snr / width)^2 / 2) on the x0 error: noise levels around snr = 1.

    It returns the factor on the output error, which is w times gain = x0 error / output error.

    Args:
        width: width in log snr.
    """

    width: float = 2.0

    def __call__(self, snr: Tensor, gain: Tensor) -> Tensor:
        return torch.exp(-((snr.log() / self.width) ** 2) / 2) * gain


class LateDDIM(DDIMScheduler):
    """A sampler: a diffusers scheduler. DDIM that adds noise (eta) only in the noisier half."""

    def step(self, model_output, timestep, sample, eta: float = 0.0, generator=None, return_dict: bool = True):
        noisy = timestep >= self.config.num_train_timesteps / 2
        return super().step(
            model_output, timestep, sample, eta=eta if noisy else 0.0, generator=generator, return_dict=return_dict
        )
