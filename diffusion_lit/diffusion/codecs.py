"""Codecs: the map between uint8 images and what the network sees of them."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from diffusion_lit.imaging.grids import harden_alpha, to_float, to_uint8
from diffusion_lit.imaging.palettes import snap_colors


class Codec(Protocol):
    """The map between uint8 images (B, *image_shape) and x (B, *shape), to which noise is added.

    x is float32 of about unit scale.
    """

    shape: tuple[int, int, int]
    image_shape: tuple[int, int, int]

    def encode(self, images: Tensor) -> Tensor:
        """Return x of uint8 images, on their device."""

    def decode(self, x: Tensor) -> Tensor:
        """Return uint8 images of x; values out of range are clipped."""


@dataclass(frozen=True, eq=False)
class Pixels:
    """Pixel values scaled to [-1, 1]; `decode` is the exact inverse of `encode`, of images with these colors and alpha.

    Args:
        shape: (C, H, W).
        has_hard_alpha: decoded alpha is 0 or 255.
        palette: uint8 (P, 3), the colors of decoded images; None: all.
    """

    shape: tuple[int, int, int]
    has_hard_alpha: bool = False
    palette: np.ndarray | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return (C, H, W)."""
        return self.shape

    def encode(self, images: Tensor) -> Tensor:
        """Return float32 (B, C, H, W) in [-1, 1] of uint8 images (B, C, H, W)."""
        return to_float(images)

    def decode(self, x: Tensor) -> Tensor:
        """Return uint8 images (..., C, H, W) of x (..., C, H, W), clipped to [-1, 1]."""
        images = to_uint8(x)
        if self.palette is not None:
            images = torch.from_numpy(snap_colors(images.cpu().numpy(), self.palette)).to(x.device)
        return harden_alpha(images) if self.has_hard_alpha else images
