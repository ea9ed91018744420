"""Codecs: what the network sees of an image."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from diffusion_lit.imaging.grids import to_float, to_uint8


class Codec(Protocol):
    """Between uint8 images (B, *image_shape) and x (B, *shape), float32 of about unit scale, which gets the noise."""

    shape: tuple[int, int, int]
    image_shape: tuple[int, int, int]

    def encode(self, images: Tensor) -> Tensor:
        """Return x of uint8 images, on their device."""

    def decode(self, x: Tensor) -> Tensor:
        """Return uint8 images of x; values out of range are clipped."""


@dataclass(frozen=True)
class Pixels:
    """The image itself, scaled to [-1, 1]; `decode` is the exact inverse of `encode`.

    Args:
        shape: (C, H, W).
    """

    shape: tuple[int, int, int]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.shape

    def encode(self, images: Tensor) -> Tensor:
        return to_float(images)

    def decode(self, x: Tensor) -> Tensor:
        return to_uint8(x)
