"""Pictures made on the spot: a trial of any recipe without its data."""

import colorsys

import numpy as np

from diffusion_lit.data.sources.folder import Split
from diffusion_lit.imaging.sizes import ImageSize, height_width


class Synthetic:
    """Discs on a darker ground, one colour and one size a class, each picture with its own place; always the same ones.

    Args:
        image_size, channels: of the pictures; alpha, if there is one, is 0 outside of the disc.
        num_classes: None for 10.
        labels: "none" for pictures without classes, as num_classes 0 is.
        num_images: pictures in all; a fifth of them is held out.
    """

    def __init__(
        self,
        image_size: ImageSize,
        channels: int,
        num_classes: int | None = None,
        labels: str = "auto",
        num_images: int = 320,
    ):
        self.size, self.channels, self.num_images = height_width(image_size), channels, num_images
        count = 0 if labels == "none" else 10 if num_classes is None else num_classes
        self.class_names = [f"colour {k}" for k in range(count)]

    def splits(self) -> dict[str, Split]:
        count = max(1, len(self.class_names))
        labels = np.arange(self.num_images, dtype=np.int64) % count
        random = np.random.Generator(np.random.PCG64(0))
        pictures = np.stack([self._picture(label / count, random) for label in labels])
        labels = labels if self.class_names else np.zeros_like(labels)
        held_out = self.num_images // 5
        return {
            "train": Split(pictures[:-held_out], labels[:-held_out]),
            "val": Split(pictures[-held_out:], labels[-held_out:]),
        }

    def _picture(self, hue: float, random: np.random.Generator) -> np.ndarray:
        """uint8 (H, W, C), or (H, W) with one channel."""
        height, width = self.size
        y, x = np.mgrid[:height, :width]
        y, x = y / height, x / width
        place = random.uniform(0.35, 0.65, 2)
        inside = np.hypot(y - place[0], x - place[1]) < 0.2 + 0.1 * hue
        colour = np.array(colorsys.hsv_to_rgb(hue, 0.8, 1.0)) * 255
        rgb = np.where(inside[..., None], colour, 0.25 * colour).astype(np.uint8)
        if self.channels == 1:
            return rgb.mean(-1).astype(np.uint8)
        return np.dstack([rgb, inside * np.uint8(255)]) if self.channels == 4 else rgb
