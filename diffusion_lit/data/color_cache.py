"""The main colors of images in words, in a file beside the decoded images: two arrays, each as `np.save` writes it.

1. Numbers of COLOR_NAMES, uint8 (N, 2); NONE where an image has fewer colors.
2. A CRC-32 checksum, uint32 (1,), of the first array.
"""

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from diffusion_lit.data.build_lock import ReportProgress, build_once
from diffusion_lit.data.cache import read_arrays
from diffusion_lit.imaging.color_names import COLOR_NAMES, name_colors
from diffusion_lit.system.console import progress_bar
from diffusion_lit.system.files import digest_text

RULE_VERSION = 1  # of `name_colors`; another number names the colors again
NONE = 255


def load_colors(images: np.ndarray, file: Path | None) -> list[list[str]]:
    """Return the main colors of each image, see `name_colors`.

    Args:
        images: uint8 (N, C, H, W).
        file: of these images, beside which one process keeps the colors for all; or None.

    Raises:
        DataError: if the file of the colors is damaged.
    """
    if file is None:
        return list(_name_all(images))

    def build(building: Path, report: ReportProgress) -> None:
        numbers = np.full((len(images), 2), NONE, np.uint8)
        for k, names in enumerate(_name_all(images)):
            numbers[k, : len(names)] = [COLOR_NAMES.index(name) for name in names]
            report(k + 1, len(images))
        with open(building, "wb") as opened:
            np.save(opened, numbers)
            np.save(opened, np.array([zlib.crc32(numbers)], np.uint32))

    path = file.with_name(f"colors-{digest_text(f'{RULE_VERSION} {file.name}')}.npy")
    build_once(path, build)

    def is_intact(numbers: np.ndarray, checksum: np.ndarray) -> bool:
        return numbers.shape == (len(images), 2) and checksum.tolist() == [zlib.crc32(numbers)]

    numbers, _ = read_arrays(path, 2, is_intact, "the colors are named again")
    return [[COLOR_NAMES[k] for k in row if k != NONE] for row in numbers.tolist()]


def _name_all(images: np.ndarray) -> Iterator[Sequence[str]]:
    with progress_bar("naming colors", visible=len(images) >= 2000, transient=True) as bar:
        for image in bar.track(images, total=len(images), description=""):
            yield name_colors(image.transpose(1, 2, 0))
