"""Images of noise, and where they stand in a grid."""

import struct
import zlib

import numpy as np
import torch
from PIL import Image


def noise(count: int, channels: int, height: int = 8, width: int = 8, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    # never white, which is what surrounds the images
    return torch.randint(0, 250, (count, channels, height, width), generator=generator, dtype=torch.uint8)


def pixels(picture: Image.Image) -> np.ndarray:
    """(H, W, C), grey too."""
    array = np.asarray(picture)
    return array[:, :, None] if array.ndim == 2 else array


def enlarge(image: torch.Tensor, zoom: int) -> np.ndarray:
    return np.kron(image.permute(1, 2, 0).numpy(), np.ones((zoom, zoom, 1), np.uint8))


def find_tile(picture: Image.Image, tile: np.ndarray) -> list[tuple[int, int]]:
    """Return every (top, left) where the tile is in the image, pixel by pixel."""
    array, (height, width, _) = pixels(picture), tile.shape
    rows, columns = array.shape[0] - height + 1, array.shape[1] - width + 1
    places = np.argwhere((array[:rows, :columns] == tile[0, 0]).all(2))
    for k in range(5, min(height, width), 5):  # a few pixels rule out nearly all places
        places = places[(array[places[:, 0] + k, places[:, 1] + k] == tile[k, k]).all(1)]
    return [
        (top, left)
        for top, left in places.tolist()
        if np.array_equal(array[top : top + height, left : left + width], tile)
    ]


RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)
ALPHA = RNG.choice(np.array([0, 64, 128, 255], np.uint8), (8, 8))
RGBA = np.dstack([RGB, ALPHA])


def png16(channels: int) -> bytes:
    """Return a PNG of 16 bits a channel, whose upper bytes are RGB or RGBA."""
    return encode_png16(RGBA[..., :channels].astype(np.uint16) * 257)


def encode_png16(values: np.ndarray) -> bytes:
    """Return a PNG of uint16 (H, W, C), written by hand: Pillow writes one channel only."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width, channels = values.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    head = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
