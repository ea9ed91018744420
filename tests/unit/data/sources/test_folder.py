"""Forty and more files of every kind and damage: the pixels they must give, or an error that names them.

Every file is made here, from the same 8x8 picture where that can be, so that the expected pixels are known without
asking the reader. Kinds that are already checked one by one in test_pictures.py are here in one table again.
"""

import io
import os
import re
import struct
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_lit.config.compose import compose_configs
from diffusion_lit.data.decoding import Decoding
from diffusion_lit.data.sources.data_source import Split, fingerprint_images
from diffusion_lit.data.sources.folder import ImageFolder
from diffusion_lit.data.store import load_split
from diffusion_lit.imaging.grids import to_pil
from diffusion_lit.system.errors import Exit, UserError
from tests.cases import each
from tests.images import ALPHA, RGB, RGBA, RNG, png16

GREY = RNG.integers(0, 256, (8, 8), dtype=np.uint8)
GREY_ALPHA = Image.frombytes("LA", (8, 8), np.dstack([GREY, ALPHA]).tobytes())
COLOURS = np.array([[10, 20, 30], [250, 0, 0], [0, 250, 0], [0, 0, 250]], np.uint8)
INDEX = RNG.integers(0, 4, (8, 8), dtype=np.uint8)
DEEP = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
UNIT = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
NOISE = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)  # cannot be packed: damage hits pixels


def encoded(image: Image.Image | np.ndarray, kind: str = "PNG", **settings) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **settings)
    return file.getvalue()


def opaque(colour: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, 3) to (H, W, 4)."""
    colour = colour if colour.ndim == 3 else np.repeat(colour[..., None], 3, 2)
    return np.dstack([colour, np.full(colour.shape[:2], 255)]).astype(np.uint8)


def palette(**settings) -> bytes:
    image = Image.frombytes("P", (8, 8), INDEX.tobytes())
    image.putpalette(COLOURS.tobytes())
    return encoded(image, **settings)


def turned(tag: int) -> bytes:
    """A picture that a camera stored turned, and its note how to turn it back; upright it is RGB."""
    stored = {
        2: RGB[:, ::-1], 3: RGB[::-1, ::-1], 4: RGB[::-1], 5: RGB.transpose(1, 0, 2), 6: np.rot90(RGB),
        7: np.rot90(RGB.transpose(1, 0, 2), 2), 8: np.rot90(RGB, -1),
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = tag
    return encoded(np.ascontiguousarray(stored[tag]), exif=exif)


def film(kind: str, **settings) -> bytes:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], **settings)


RED = opaque(np.full((8, 8, 3), (255, 0, 0)))
GOOD = {  # name: bytes, the pixels with 4 channels
    "rgb.png": (encoded(RGB), opaque(RGB)),
    "rgb.bmp": (encoded(RGB, "BMP"), opaque(RGB)),
    "rgb.tif": (encoded(RGB, "TIFF", compression="tiff_lzw"), opaque(RGB)),
    "rgb.webp": (encoded(RGB, "WEBP", lossless=True), opaque(RGB)),
    "rgba.png": (encoded(RGBA), RGBA),
    "rgba.tif": (encoded(RGBA, "TIFF"), RGBA),
    "rgba.webp": (encoded(RGBA, "WEBP", lossless=True, exact=True), RGBA),
    "grey.png": (encoded(GREY), opaque(GREY)),
    "grey_alpha.png": (encoded(GREY_ALPHA),
                       np.dstack([opaque(GREY)[..., :3], ALPHA])),
    "grey_alpha.tif": (encoded(GREY_ALPHA, "TIFF"), np.dstack([opaque(GREY)[..., :3], ALPHA])),
    "one_bit.png": (encoded(Image.fromarray(GREY > 127)), opaque(np.where(GREY > 127, 255, 0))),
    "one_bit.tif": (encoded(Image.fromarray(GREY > 127), "TIFF", compression="group4"),
                    opaque(np.where(GREY > 127, 255, 0))),
    "one_bit_hole.png": (encoded(Image.fromarray(GREY > 127), transparency=0),
                         np.dstack([opaque(np.where(GREY > 127, 255, 0))[..., :3], np.where(GREY > 127, 255, 0)])),
    "grey_hole.png": (encoded(GREY, transparency=int(GREY[0, 0])),
                      np.dstack([opaque(GREY)[..., :3], np.where(GREY[0, 0] == GREY, 0, 255)])),
    "palette.png": (palette(), opaque(COLOURS[INDEX])),
    "palette_hole.png": (palette(transparency=1), np.dstack([COLOURS[INDEX], np.where(INDEX == 1, 0, 255)])),
    "palette_alpha.png": (palette(transparency=bytes([255, 128, 0, 7])),
                          np.dstack([COLOURS[INDEX], np.array([255, 128, 0, 7])[INDEX]])),
    "palette.gif": (encoded(Image.open(io.BytesIO(palette())), "GIF"), opaque(COLOURS[INDEX])),
    "deep.png": (encoded(DEEP), opaque((DEEP / 257).round())),
    "deep.tif": (encoded(DEEP, "TIFF"), opaque((DEEP / 257).round())),
    "deep_big_endian.tif": (encoded(Image.frombytes("I;16B", (8, 8), DEEP.astype(">u2").tobytes()), "TIFF"),
                            opaque((DEEP / 257).round())),
    "deep_int32.tif": (encoded(DEEP.astype(np.int32), "TIFF"), opaque((DEEP / 257).round())),
    "deep_rgb.png": (png16(3), opaque(RGB)),
    "deep_rgba.png": (png16(4), RGBA),
    "float_to_1.tif": (encoded(UNIT, "TIFF"), opaque((UNIT * 255).round())),
    "float_to_255.tif": (encoded(UNIT * 255, "TIFF"), opaque((UNIT * 255).round())),
    "cmyk.tif": (encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF"), RED),
    **{f"turned_{tag}.png": (turned(tag), opaque(RGB)) for tag in range(2, 9)},
    "film.gif": (film("GIF"), RED),
    "film.webp": (film("WEBP", lossless=True), RED),
    "film.png": (film("PNG"), RED),
    "really_a_png.jpg": (encoded(RGB), opaque(RGB)),
    "UPPER.PNG": (encoded(RGB), opaque(RGB)),
    os.fsdecode(b"caf\xe9.png"): (encoded(RGB), opaque(RGB)),
}  # fmt: skip
RANGES = {"deep": 65535, "float_to_1": 1, "float_to_255": 255}
LOSSY = {"grey.jpg": (encoded(np.full((8, 8), 90, np.uint8), "JPEG", quality=100), 90),
         "cmyk.jpg": (encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100), (255, 0, 0)),
         "rgb.jpg": (encoded(np.full((8, 8, 3), (200, 100, 50), np.uint8), "JPEG", quality=100), (200, 100, 50)),
         }  # fmt: skip


def half(kind: str) -> bytes:
    whole = encoded(NOISE, kind)
    return whole[: len(whole) // 2]


def in_the_middle(kind: str) -> bytes:
    """Sixteen other bytes in the middle."""
    whole = bytearray(encoded(NOISE, kind))
    whole[len(whole) // 2 : len(whole) // 2 + 16] = bytes(range(100, 116))
    return bytes(whole)


def of_no_size() -> bytes:
    whole = bytearray(encoded(RGB))
    whole[16:20] = bytes(4)
    whole[29:33] = struct.pack(">I", zlib.crc32(whole[12:29]))
    return bytes(whole)


NAN = np.where(GREY > 127, np.float32("nan"), UNIT)
BROKEN = {
    "empty.png": b"",
    "byte.jpg": b"\xff",
    "page.jpg": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "text.png": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n",
    "zeros.png": bytes(500),
    "no_size.png": of_no_size(),
    "garbage_middle.png": in_the_middle("PNG"),
    "header.gif": encoded(NOISE, "GIF")[:20],
    "header.jpg": encoded(NOISE, "JPEG")[:20],
    "header.png": encoded(NOISE)[:20],
    "header.webp": encoded(NOISE, "WEBP")[:20],
    "half.png": half("PNG"),
    "half.jpg": half("JPEG"),
    "half.gif": half("GIF"),
    "half.webp": half("WEBP"),
    "half.bmp": half("BMP"),
    "half.tif": half("TIFF"),
    "nan.tif": encoded(NAN, "TIFF"),
    "below_zero.tif": encoded(UNIT - 0.5, "TIFF"),
    "too_deep.tif": encoded(DEEP.astype(np.int32) * 9, "TIFF"),
}
# Damage that no decoder can see: no sums are stored of these bytes, or the last ones hold no pixels. They decode, to
# other pixels or to the same.
UNSEEN = {
    "garbage_middle.jpg": in_the_middle("JPEG"),
    "garbage_middle.bmp": in_the_middle("BMP"),
    "zero_tail.jpg": encoded(NOISE, "JPEG") + bytes(500),
    "less_1.png": encoded(NOISE)[:-1],
    "less_1.gif": encoded(NOISE, "GIF")[:-1],
    "less_1.jpg": encoded(NOISE, "JPEG")[:-1],
}


def test_there_are_forty_files_and_more():
    assert len(GOOD) + len(LOSSY) + len(BROKEN) + len(UNSEEN) >= 60


@each("name", GOOD, ids=ascii)
def test_pixels(name, tmp_path):
    data, expected = GOOD[name]
    (tmp_path / name).write_bytes(data)
    (path,) = ImageFolder(str(tmp_path)).splits()["train"].images  # the folder sees it, too
    high = next((high for start, high in RANGES.items() if name.startswith(start)), None)
    decode = partial(Decoding, 8, value_range=high and (0, high))
    full = decode(4)(path).transpose(1, 2, 0)
    np.testing.assert_array_equal(full, expected)
    solid = expected[..., 3] == 255
    np.testing.assert_array_equal(decode(3)(path).transpose(1, 2, 0)[solid], expected[solid, :3])
    on_blue = decode(3, background=(0, 0, 255))(path).transpose(1, 2, 0)
    a = expected[..., 3:] / 255
    assert np.abs(on_blue - (expected[..., :3] * a + np.array([0, 0, 255]) * (1 - a))).max() <= 1
    luma = (on_blue.astype(int) @ [19595, 38470, 7471] + 0x8000) >> 16  # ITU-R 601-2, as Pillow rounds
    assert np.abs(decode(1, background=(0, 0, 255))(path)[0] - luma).max() <= 1


@pytest.mark.parametrize("name", LOSSY)
def test_pixels_of_lossy_files(name, tmp_path):
    data, expected = LOSSY[name]
    (tmp_path / name).write_bytes(data)
    assert np.abs(Decoding(8, 3)(tmp_path / name).transpose(1, 2, 0) - np.array(expected)).max() <= 3


@each("name", BROKEN)
def test_an_error_that_names_the_file(name, tmp_path):
    (tmp_path / name).write_bytes(BROKEN[name])
    with pytest.raises(UserError, match=rf"{re.escape(name)}: cannot be read as an image \(.+\)$") as caught:
        Decoding(8, 3)(tmp_path / name)
    assert caught.value.exit_code == Exit.DATA
    assert "0x" not in str(caught.value)  # no address of a buffer


@each("name", UNSEEN)
def test_damage_that_no_decoder_sees_gives_pixels(name, tmp_path):
    """Honest: these train. Should Pillow ever notice, this test says so."""
    (tmp_path / name).write_bytes(UNSEEN[name])
    assert Decoding(64, 3)(tmp_path / name).shape == (3, 64, 64)


def test_links_to_nowhere_and_folders_are_named(tmp_path):
    (tmp_path / "link.png").symlink_to("nowhere.png")
    (tmp_path / "folder.png").mkdir()
    for name in ("link.png", "folder.png", "gone.png"):
        with pytest.raises(UserError, match=rf"{name}: cannot be read"):
            Decoding(8, 3)(tmp_path / name)


# ------------------------------------------------------------------------------------------ alpha, and there and back


def there_and_back(path: Path, **settings) -> np.ndarray:
    """File to store to Pillow to file to pixels."""
    store = load_split(Split([path], np.zeros(1, np.int64)), Decoding(8, 4, **settings), None, "train")
    saved = path.with_name("back.png")
    to_pil(torch.from_numpy(store.images[0])).save(saved)
    with Image.open(saved) as image:
        assert image.mode == "RGBA"
        return np.asarray(image)


def test_rgba_comes_back_pixel_by_pixel(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(RGBA))
    np.testing.assert_array_equal(there_and_back(path), RGBA)
    expected = np.where(ALPHA[..., None] > 0, RGBA, 0)
    assert (expected != RGBA).any()
    np.testing.assert_array_equal(there_and_back(path, alpha="zero"), expected)
    path.write_bytes(encoded(RGB))
    for alpha in ("keep", "zero"):
        np.testing.assert_array_equal(there_and_back(path, alpha=alpha), opaque(RGB))


def test_zero_is_the_same_for_pictures_that_look_the_same(tmp_path):
    """Two skins that differ only in what nobody sees are one picture, also when they are resized."""
    pictures = []
    for hidden in ((255, 0, 0), (0, 40, 0)):
        other = np.where(ALPHA[..., None] > 0, RGBA, np.uint8([*hidden, 0]))
        pictures.append(tmp_path / f"{hidden[0]}.png")
        pictures[-1].write_bytes(encoded(other))
    for size in (4, 8, 16):
        for resample in ("nearest", "bilinear", "bicubic", "area"):
            first, second = (Decoding(size, 4, resample, alpha="zero")(path) for path in pictures)
            np.testing.assert_array_equal(first, second)
    assert (Decoding(8, 4)(pictures[0]) != Decoding(8, 4)(pictures[1])).any()


@pytest.mark.parametrize("channels", [1, 3])
def test_zero_and_hard_need_a_channel_for_alpha(channels):
    for alpha in ("zero", "hard"):
        message = rf"data\.alpha={alpha}: has no effect with data\.channels=.*Set data\.channels=4"
        with pytest.raises(UserError, match=message):
            compose_configs("train", [f"data.alpha={alpha}", f"data.channels={channels}"])


def test_hard_alpha_is_a_threshold_after_scaling(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.fromarray(RGBA)))
    hard = there_and_back(path, alpha="hard")
    is_opaque = RGBA[..., 3:] > 127
    np.testing.assert_array_equal(hard, np.where(is_opaque, np.dstack([RGB, np.full((8, 8), 255)]), 0))
    for resample in ("nearest", "bilinear", "bicubic", "area"):
        scaled = Decoding(5, 4, resample, alpha="hard")(path)
        assert set(np.unique(scaled[3])) <= {0, 255}
        assert not scaled[:3, scaled[3] == 0].any()


def test_labels_of_folders_are_auto_or_none():
    """Only arrays can name an array or a file of labels."""
    with pytest.raises(UserError, match=r"data\.labels=y: must be one of auto, none"):
        compose_configs("train", ["data=image_folder", "data.root=x", "data.labels=y"])
    compose_configs("train", ["data=arrays", "data.images=x.npz", "data.labels=y"])


# ------------------------------------------------------------------------------------------ fit


@pytest.mark.parametrize("shape", [(8, 16), (16, 8)])
def test_stretch_keeps_all_of_it(tmp_path, shape):
    tall = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
    Image.fromarray(tall).save(tmp_path / "a.png")
    squeezed = Decoding(8, 3, "area", fit="stretch")(tmp_path / "a.png").transpose(1, 2, 0)
    means = tall.reshape(8, shape[0] // 8, 8, shape[1] // 8, 3).mean((1, 3))
    assert np.abs(squeezed - means).max() <= 1
    cut = Decoding(8, 3, "area")(tmp_path / "a.png").transpose(1, 2, 0)
    np.testing.assert_array_equal(cut, tall[4:12] if shape[0] > 8 else tall[:, 4:12])


def test_a_relative_folder_is_decoded_once(tmp_path, monkeypatch):
    """Rank 0 has the path as it was typed, the other ranks, `evaluate` and `app` have that of the run."""
    (tmp_path / "in").mkdir()
    to_pil(torch.zeros(3, 8, 8, dtype=torch.uint8)).save(tmp_path / "in" / "0.png")
    monkeypatch.chdir(tmp_path)
    typed, stored = (
        fingerprint_images(ImageFolder(root).splits()["train"].images) for root in ("in", f"{tmp_path}/in")
    )
    assert typed == stored
