"""Images with more than 8 bits a channel: every value is read, and scaled by one range."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_lit.data.decoding import Decoding
from diffusion_lit.data.deep_images import is_deep, read_values, scale_to_8_bits
from diffusion_lit.data.originals import load_originals
from diffusion_lit.system.errors import DataError
from tests.images import encode_png16

RNG = np.random.default_rng(0)


def tiff(values: np.ndarray, compression: int) -> bytes:
    """Return a TIFF of uint16 (H, W, C); compression is 1 (none) or 8 (deflate)."""
    height, width, channels = values.shape
    data = values.astype("<u2").tobytes()
    data = data if compression == 1 else zlib.compress(data)
    entries = {256: (4, width), 257: (4, height), 258: (3, None), 259: (3, compression), 262: (3, 2), 273: (4, 8)}
    entries |= {277: (3, channels), 278: (4, height), 279: (4, len(data))} | ({338: (3, 2)} if channels == 4 else {})
    end = 8 + len(data) + 2 + 12 * len(entries) + 4
    fields = [
        struct.pack("<HHII", tag, kind, channels if value is None else 1, end if value is None else value)
        for tag, (kind, value) in entries.items()
    ]
    directory = struct.pack("<H", len(entries)) + b"".join(fields) + bytes(4)
    return (
        struct.pack("<2sHI", b"II", 42, 8 + len(data))
        + data
        + directory
        + struct.pack(f"<{channels}H", *[16] * channels)
    )


def test_every_bit_of_every_channel_is_read(tmp_path):
    """Pillow alone reads the upper byte of colors with 16 bits."""
    for channels in (1, 2, 3, 4):
        values = RNG.integers(0, 65536, (5, 7, channels), dtype=np.uint16)
        files = [encode_png16(values)] + ([tiff(values, compression) for compression in (1, 8)] if channels > 2 else [])
        for k, data in enumerate(files):
            path = tmp_path / f"{channels}_{k}"
            path.write_bytes(data)
            with Image.open(path) as image:
                assert is_deep(image)
                read = read_values(image, lambda path=path: Image.open(path))
            np.testing.assert_array_equal(read, values[..., :3] if channels > 2 else values[..., 0])
            decoded = Decoding((5, 7), 1 if channels < 3 else 4, value_range=(0, 65535))(path)[:3]
            if channels != 2:  # laid on the background
                np.testing.assert_array_equal(
                    decoded, scale_to_8_bits(values[..., : min(channels, 3)], (0, 65535)).transpose(2, 0, 1)
                )


def test_alpha_is_always_full_scale(tmp_path):
    values = np.full((4, 4, 4), 4095, np.uint16)
    values[..., 3] = 65535
    values[0, :, 3] = 0
    (tmp_path / "a.png").write_bytes(encode_png16(values))
    decoded = Decoding(4, 4, value_range=(0, 4095))(tmp_path / "a.png")
    assert decoded[3].tolist() == [[0] * 4] + [[255] * 4] * 3
    assert (decoded[:3] == 255).all()


def test_the_scale_is_linear_rounds_and_clips():
    values = np.array([[-2000, -1024, 1023, 3071, 30000]], np.int16)
    assert scale_to_8_bits(values, (-1024, 3071)).tolist() == [[0, 0, 127, 255, 255]]
    assert scale_to_8_bits(np.arange(256, dtype=np.float32) / 255, (0, 1)).tolist() == list(range(256))
    assert scale_to_8_bits(np.array([2**31 - 1], np.int32), (-(2**31), 2**31 - 1)).tolist() == [255]
    assert scale_to_8_bits(np.arange(256, dtype=np.uint16) * 257, (0, 65535)).tolist() == list(range(256))


KINDS = {
    "uint16": ".png", "int16": ".tif", "int32": ".tif", "float32": ".tif", "big-endian": ".png",
}  # fmt: skip


def test_files_and_arrays_are_decoded_alike(tmp_path):
    for kind, suffix in KINDS.items():
        values = (RNG.random((6, 6)) * 1000).astype("uint16" if kind == "big-endian" else kind)
        path = tmp_path / f"{kind}{suffix}"
        Image.fromarray(values).save(path)
        decode = Decoding(6, 1, value_range=(0, 1000))
        expected = np.round(values.astype(float) * 0.255).astype(np.uint8)
        np.testing.assert_array_equal(decode(path)[0], expected)
        for same in (values, values.astype(">u2") if "u" in kind else values.astype(np.float64)):
            np.testing.assert_array_equal(decode(same)[0], expected)


def test_the_orientation_of_a_deep_image_is_applied(tmp_path):
    values, exif = np.arange(24, dtype=np.uint16).reshape(4, 6) * 2000, Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(values).save(tmp_path / "a.png", exif=exif)
    decoded = Decoding((6, 4), 1, value_range=(0, 65535))(tmp_path / "a.png")[0]
    np.testing.assert_array_equal(decoded, np.rot90(scale_to_8_bits(values, (0, 65535)), -1))


def test_images_without_a_scale_are_named(tmp_path):
    nan = tmp_path / "nan.tif"
    Image.fromarray(np.array([[0, np.nan], [1, np.inf]], np.float32)).save(nan)
    deep = tmp_path / "deep.png"
    Image.fromarray(np.array([[7, 900]], np.uint16)).save(deep)
    cases: dict[Path, tuple[object, str]] = {
        nan: ((0, 1), "nan.tif: .*2 of its values are NaN or infinite"),
        deep: (None, r"deep.png: .*values from 0 to 900 need a range: set data.value_range=\[low,high\]"),
    }
    for path, (value_range, message) in cases.items():
        with pytest.raises(DataError, match=message):
            Decoding(2, 1, value_range=value_range)(path)


def test_a_deep_image_to_edit_is_full_scale_in_a_run_without_a_range(tmp_path):
    values = np.arange(16, dtype=np.uint16).reshape(4, 4) * 4369
    Image.fromarray(values).save(tmp_path / "a.png")
    for value_range, white in ((None, 65535), ((0, 80000), 80000)):
        originals = load_originals(str(tmp_path / "a.png"), None, Decoding(4, 1, value_range=value_range))
        np.testing.assert_array_equal(originals.images[0, 0], scale_to_8_bits(values, (0, white)))
