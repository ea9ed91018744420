"""Generated images, to try a recipe without its data."""

import colorsys

import numpy as np

from diffusion_lit.data.sources.data_source import Split
from diffusion_lit.imaging.sizes import ImageSize, height_width


class Synthetic:
    """Discs on a darker background, one color and size per class, at random positions; the same in every run.

    Args:
        image_size: pixels, one number or (height, width).
        channels: 1, 3, or 4, where alpha is 0 outside of the disc.
        num_classes: None for 10.
        labels: "none" for images without classes, as with num_classes 0.
        num_images: number of images; the last fifth is the validation split.
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
        self.class_names = [f"color {k}" for k in range(count)]

    def splits(self) -> dict[str, Split]:
        """Return "train" and "val"."""
        count = max(1, len(self.class_names))
        labels = np.arange(self.num_images, dtype=np.int64) % count
        random = np.random.Generator(np.random.PCG64(0))
        images = np.stack([self._draw(label / count, random) for label in labels])
        n = self.num_images - self.num_images // 5
        return {"train": Split(images[:n], labels[:n]), "val": Split(images[n:], labels[n:])}

    def _draw(self, hue: float, random: np.random.Generator) -> np.ndarray:
        """Return uint8 (H, W, C), or (H, W) with one channel."""
        height, width = self.size
        y, x = np.mgrid[:height, :width]
        y, x = y / height, x / width
        center = random.uniform(0.35, 0.65, 2)
        inside = np.hypot(y - center[0], x - center[1]) < 0.2 + 0.1 * hue
        color = np.array(colorsys.hsv_to_rgb(hue, 0.8, 1.0)) * 255
        rgb = np.where(inside[..., None], color, 0.25 * color).astype(np.uint8)
        if self.channels == 1:
            return rgb.mean(-1).astype(np.uint8)
        return np.dstack([rgb, inside * np.uint8(255)]) if self.channels == 4 else rgb
