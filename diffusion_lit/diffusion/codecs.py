"""Codecs: the map between uint8 images and what the network sees of them."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from diffusion_lit.imaging.grids import to_float, to_uint8


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


@dataclass(frozen=True)
class Pixels:
    """Pixel values scaled to [-1, 1]; `decode` is the exact inverse of `encode`.

    Args:
        shape: (C, H, W).
    """

    shape: tuple[int, int, int]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return (C, H, W)."""
        return self.shape

    def encode(self, images: Tensor) -> Tensor:
        """Return float32 (B, C, H, W) in [-1, 1] of uint8 images (B, C, H, W)."""
        return to_float(images)

    def decode(self, x: Tensor) -> Tensor:
        """Return uint8 images (B, C, H, W) of x (B, C, H, W), clipped to [-1, 1]."""
        return to_uint8(x)
