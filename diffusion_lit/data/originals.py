"""The images that `sample` edits (`init=`, `mask=`), decoded as training images are, without torch."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from diffusion_lit.config.secrets import hide_paths
from diffusion_lit.data.decoding import Decoding, list_errors, open_image, report_broken_image
from diffusion_lit.data.sources.listing import list_files
from diffusion_lit.imaging.sizes import height_width
from diffusion_lit.system.errors import DataError


@dataclass(frozen=True)
class Originals:
    """Images to edit.

    Args:
        files: their paths.
        images: uint8 (N, C, H, W).
        mask_file: the path of the mask, or None.
        mask: bool (H, W), true where the mask is white or transparent; None without one.
    """

    files: list[Path]
    images: np.ndarray
    mask_file: Path | None
    mask: np.ndarray | None


def load_originals(init: str, mask: str | None, decoding: Decoding) -> Originals:
    """Return the images of `init`, a file or a folder, and the mask.

    Of a folder that `sample` wrote, its images are taken, without the grid. In a run on 8-bit
    images, 65535 is white in files of 16 bits.

    Raises:
        DataError: with everything that cannot be read or has a wrong size.
    """
    path, errors = Path(init).expanduser(), []
    decoding = replace(decoding, value_range=decoding.value_range or (0, 65535))

    def attempt(function: Callable, *args: object) -> np.ndarray | None:
        try:
            return function(*args)
        except DataError as error:
            errors.append(str(error))

    files = [path]
    if (path / "manifest.json").is_file():
        try:
            files = [path / entry["file"] for entry in json.loads((path / "manifest.json").read_bytes())["images"]]
        except (ValueError, TypeError, KeyError):  # of others, or of `shards=`
            files = []
        if not files:
            errors.append(f"init={init}: its manifest.json lists no image files. Use a folder of image files.")
    elif path.is_dir():
        files = list_files(path, recursive=False).images
        if not files:
            errors.append(f"init={init}: no images in this folder")
    images = [attempt(decoding, file) for file in files]
    mask_file = mask and Path(mask).expanduser()
    area = attempt(_load_mask, mask_file, decoding) if mask_file else None
    if errors:
        raise list_errors(errors, "cannot edit")
    return Originals(files, np.stack(images), mask_file, area)


def _load_mask(path: Path, decoding: Decoding) -> np.ndarray:
    """Return bool (H, W), true where to paint. The size must match: a scaled mask would keep other pixels."""
    height, width = height_width(decoding.image_size)
    with report_broken_image(path), open_image(path) as image:
        size = image.size
    if size != (width, height):
        raise DataError(f"mask={path}: {size[0]}x{size[1]} px, but images of this run have {width}x{height}")
    return replace(decoding, channels=1, background=(255, 255, 255), value_range=(0, 65535))(path)[0] > 127


def fingerprint_file(path: Path) -> dict[str, str]:
    """Return the name of a file and a digest of its content, for the manifest; of an absolute path the last name."""
    return {"file": hide_paths(str(path)), "blake2b": hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()}
