"""Validation of a network without a Trainer: the images, levels and noise that DiffusionModule gives to its metric."""

import torch

from diffusion_lit.data.batches import ValidationBatches
from diffusion_lit.data.store import ImageStore
from diffusion_lit.diffusion.loss import Diffusion
from diffusion_lit.imaging.grids import to_float
from diffusion_lit.training.noise_levels import ValidationLevels, validation_noise
from diffusion_lit.training.validation_metric import LossByNoiseLevel


class Probe:
    def __init__(self, store: ImageStore, diffusion: Diffusion, batch_size: int = 64):
        self.levels, self.diffusion, self.batch_size = ValidationLevels(diffusion), diffusion, batch_size
        self.t, self.bin, self.share = self.levels.t, self.levels.bin, self.levels.share
        batches = list(ValidationBatches(store, len(self.levels)))
        self.image, self.y = (torch.cat([batch[key] for batch in batches]) for key in ("image", "y"))
        self.eps = validation_noise(0, len(self.image), self.image.shape[1:], torch.device("cpu"))

    @torch.no_grad()
    def losses(self, net) -> tuple[float, list[float], float]:
        """(weighted loss, unweighted error in each of the ten bins, mean error of the noise estimate)."""
        metric = LossByNoiseLevel(self.levels)
        for start in range(0, len(self.image), self.batch_size):
            part = slice(start, start + self.batch_size)
            x0, eps, y = to_float(self.image[part]), self.eps[part], self.y[part]
            level = self.levels.indices_at(start, len(x0))
            metric.update(level, self.diffusion.error(net, x0, self.t[level], eps, y), x0.square().flatten(1).mean(1))
        losses = metric.compute()
        return losses["loss"], losses["bins"], losses["error"]
