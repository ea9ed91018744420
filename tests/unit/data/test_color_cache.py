"""The colors of images are named once, and kept beside the decoded images."""

import numpy as np
import pytest
from PIL import Image

from diffusion_lit.data import color_cache
from diffusion_lit.data.datamodule import ImageDataModule
from diffusion_lit.data.sources.folder import ImageFolder
from diffusion_lit.system.errors import DataError

COLORS = {"red": (220, 30, 30), "green": (30, 160, 30), "blue": (30, 30, 220)}


@pytest.fixture
def folder(tmp_path):
    """Twelve images for training and four for validation, one of them transparent."""
    for k in range(16):
        pixels = np.zeros((8, 8, 4), np.uint8)
        pixels[1:7, 1:7] = (*[*COLORS.values()][k % 3], 255 * (k != 15))
        pixels[0, 0, 0] = k  # no two images are the same
        path = tmp_path / "images" / ("train" if k < 12 else "val") / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return tmp_path / "images"


@pytest.fixture
def named(monkeypatch):
    """The images whose colors are named."""
    images, name_colors = [], color_cache.name_colors
    monkeypatch.setattr(color_cache, "name_colors", lambda image: images.append(image) or name_colors(image))
    return images


def load_captions(folder, cache_dir, **settings):
    settings = {"channels": 4, "caption_colors": True, "cache_dir": cache_dir and str(cache_dir)} | settings
    data = ImageDataModule(ImageFolder(str(folder)), 8, **settings)
    data.setup()
    return [*data.train.captions, *data.val.captions], data.train.fingerprint


def test_a_second_start_names_no_colors_and_has_the_same_captions(folder, named, tmp_path):
    first = load_captions(folder, None)
    assert set(first[0]) == {*[(name,) for name in COLORS], ()}
    for expected in (16, 32, 32):
        assert len(named) == expected
        assert load_captions(folder, tmp_path / "cache") == first
    assert len(list((tmp_path / "cache").glob("colors-*.npy"))) == 2
    assert not list((tmp_path / "cache").glob("*.lock"))


def test_other_images_another_decoding_or_another_rule_name_again(folder, named, tmp_path, monkeypatch):
    load_captions(folder, tmp_path)
    Image.new("RGB", (8, 8), "white").save(folder / "train" / "0.png")
    load_captions(folder, tmp_path)
    assert len(named) == 16 + 12
    load_captions(folder, tmp_path, background=(1, 2, 3))
    assert len(named) == 28 + 16
    monkeypatch.setattr(color_cache, "RULE_VERSION", 0)
    load_captions(folder, tmp_path)
    assert len(named) == 44 + 16


def test_a_damaged_file_is_named(folder, tmp_path):
    load_captions(folder, tmp_path)
    for path in tmp_path.glob("colors-*.npy"):
        whole = path.read_bytes()
        for damaged in (b"", whole[:-1], whole + b"0", whole[:130] + bytes([whole[130] ^ 1]) + whole[131:]):
            path.write_bytes(damaged)
            with pytest.raises(DataError, match=f"{path.name} is damaged. Remove it, and the colors are named again"):
                load_captions(folder, tmp_path)
        path.write_bytes(whole)
    load_captions(folder, tmp_path)
