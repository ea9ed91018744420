"""The pictures that `sample` edits, read as training pictures are. No torch."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from diffusion_lit.data.decoding import Decoding, broken, named, opened
from diffusion_lit.data.sources.folder import SUFFIXES
from diffusion_lit.imaging.sizes import height_width
from diffusion_lit.system.errors import Exit, UserError


@dataclass(frozen=True)
class Originals:
    """`images` uint8 (N, C, H, W) of `files`; `mask` bool (H, W), true where `mask_file` is white or transparent."""

    files: list[Path]
    images: np.ndarray
    mask_file: Path | None
    mask: np.ndarray | None


def read(init: str, mask: str | None, decoding: Decoding) -> Originals:
    """`init`: a picture, or a folder of them; of a folder that `sample` made its images, without the grid.

    Raises:
        UserError: exit 3, everything that cannot be read or has a wrong size.
    """
    path, faults, images = Path(init).expanduser(), [], []
    files = [path]
    if (path / "manifest.json").is_file():
        entries = json.loads((path / "manifest.json").read_text()).get("images", [])
        files = [path / entry["file"] for entry in entries]
        faults = [] if files else [f"init={init}: its images are in an array, images.npy; take pictures"]
    elif path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.name[0] != ".")
        faults = [] if files else [f"init={init}: no pictures are in this folder"]
    for file in files:
        try:
            images.append(decoding(file))
        except UserError as error:
            faults.append(str(error))
    mask_file, area = mask and Path(mask).expanduser(), None
    if mask_file:
        try:
            area = _area(mask_file, decoding)
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise broken(faults, "this cannot be edited")
    return Originals(files, np.stack(images), mask_file, area)


def _area(path: Path, decoding: Decoding) -> np.ndarray:
    """Where to paint. Pixel for pixel as large as images of the run: a mask that is scaled would keep other pixels."""
    height, width = height_width(decoding.image_size)
    with named(path), opened(path) as picture:
        found = picture.size
    if found != (width, height):
        told = f"mask={path} has {found[0]}x{found[1]} px: images of this run have {width}x{height}"
        raise UserError(Exit.DATA, told)
    return replace(decoding, channels=1, background=(255, 255, 255))(path)[0] > 127


def fingerprint(path: Path) -> dict[str, str]:
    """A file and what is in it, for the manifest."""
    return {"file": str(path), "blake2b": hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()}
