"""`data.value_range=auto`: one range for all images of all splits, and no pass over images with 8 bits."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_lit.config.compose import compose_configs
from diffusion_lit.data import value_ranges
from diffusion_lit.data.datamodule import ImageDataModule
from diffusion_lit.data.sources.arrays import Arrays
from diffusion_lit.data.sources.concat import Concat
from diffusion_lit.data.sources.dataset import DatasetSource
from diffusion_lit.data.sources.folder import ImageFolder
from diffusion_lit.data.sources.path_table import PathTable
from diffusion_lit.data.value_ranges import choose_range, resolve_value_range
from diffusion_lit.system.errors import DataError, UserError

RNG = np.random.default_rng(0)
AUTO = {"value_range": "auto"}


def write(folder: Path, **images: np.ndarray) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in images.items():
        Image.fromarray(values).save(folder / f"{name}{'.png' if values.dtype in (np.uint8, np.uint16) else '.tif'}")
    return folder


def found(source) -> list[float] | None:
    return resolve_value_range(AUTO, source.splits())["value_range"]


def deep(high: float, kind="uint16", low: float = 0) -> np.ndarray:
    return np.linspace(low, high, 64).reshape(8, 8).astype(kind)


def test_full_scales_are_recognized_and_other_numbers_kept():
    cases = {
        (0, 4095): [0, 4095], (3, 1024): [0, 4095], (0, 1023): [0, 1023], (0, 1000): [0, 1023], (10, 250): [0, 255],
        (0, 9000): [0, 16383], (0, 40000): [0, 65535], (0.0, 1.0): [0, 1], (0.1, 0.4): [0, 1],
        (0.0, 1.02): [0, 1.02], (0, 5): [0, 5], (0.0, 1e-4): [0, 1e-4], (-1.0, 1.0): [-1, 1],
        (-1024, 3071): [-1024, 3071],
        (0, 70000): [0, 70000], (0, 2**31): [0, 2**31], (7, 7): [7, 8], (0, 0): [0, 1], (-5, -5): [-5, -4],
        (1e20, 1e20): [int(1e20), int(1e20) + 1e14],
    }  # fmt: skip
    for (low, high), expected in cases.items():
        assert choose_range(low, high) == expected, (low, high)


def test_one_range_for_all_splits_and_kinds_of_sources(tmp_path):
    dark, bright = deep(300), deep(3500)
    folder = write(tmp_path / "folder" / "train", dark=dark, eight=RNG.integers(0, 256, (8, 8), dtype=np.uint8))
    write(tmp_path / "folder" / "val", bright=bright)
    np.save(tmp_path / "a.npy", np.stack([dark, bright]))
    np.savez(tmp_path / "b.npz", x_train=deep(0.5, float)[None], y_train=[0], x_val=deep(0.9, float)[None], y_val=[0])
    (tmp_path / "t.csv").write_text("path\n" + "\n".join(str(p) for p in sorted((tmp_path / "folder").rglob("*.png"))))
    (tmp_path / "x").mkdir()
    write(tmp_path / "x" / "signed", ct=deep(3071, "int16", -1024), other=deep(100, "int16", -50))
    assert found(ImageFolder(str(tmp_path / "folder"))) == [0, 4095]
    assert found(ImageFolder(str(folder))) == [0, 1023]
    assert found(Arrays(str(tmp_path / "a.npy"))) == [0, 4095]
    assert found(Arrays(str(tmp_path / "b.npz"))) == [0, 1]
    assert found(PathTable(str(tmp_path / "t.csv"))) == [0, 4095]
    assert found(Concat([str(folder), str(tmp_path / "a.npy")])) == [0, 4095]
    assert found(DatasetSource([bright.astype(float) / 4095] * 3)) == [0, 1]
    assert found(ImageFolder(str(tmp_path / "x"))) == [-1024, 3071]


def test_images_with_8_bits_are_not_decoded(tmp_path, monkeypatch):
    folder = write(tmp_path / "png", **{str(k): RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8) for k in range(5)})
    for k, suffix in enumerate(("jpg", "gif", "bmp", "webp")):
        Image.new("RGB", (8, 8)).save(folder / f"{k}.{suffix}")
    np.save(tmp_path / "a.npy", np.zeros((4, 8, 8), np.uint8))
    monkeypatch.setattr(value_ranges, "open_image", pytest.fail)
    assert found(ImageFolder(str(folder))) is None
    assert found(Arrays(str(tmp_path / "a.npy"))) is None


def test_numbers_and_other_groups_are_left_as_they_are():
    for data in ({"value_range": [0, 9]}, {"value_range": None}, {}):
        assert resolve_value_range(data, {}) is data


def test_broken_images_do_not_decide_and_are_named_later(tmp_path):
    nan = deep(0.5, "float32")
    nan[0, 0] = np.nan
    folder = write(tmp_path / "a", good=deep(0.5, "float32"), nan=nan)
    (folder / "cut.tif").write_bytes((folder / "good.tif").read_bytes()[:60])
    assert found(ImageFolder(str(folder))) == [0, 1]
    with pytest.raises(DataError, match=r"(?s)cut.tif.*nan.tif: .*1 of its values are NaN") as caught:
        ImageDataModule(str(folder), 8, channels=1).setup()
    assert "2 of 3 images" in str(caught.value)
    np.save(tmp_path / "nan.npy", np.stack([deep(0.5, float), nan]))
    with pytest.raises(DataError, match=r"nan.npy, images, row 1: 1 of its values are NaN or infinite"):
        ImageDataModule(Arrays(str(tmp_path / "nan.npy")), 8, channels=1).setup()


def test_no_image_decides_for_itself(tmp_path):
    """A dark image stays dark beside a bright one."""
    write(tmp_path, dark=deep(100), bright=deep(4095))
    data = ImageDataModule(str(tmp_path), 8, channels=1, val_fraction=0)
    data.setup()
    assert sorted(image.max() for image in data.train.images) == [6, 255]


def test_a_range_is_two_numbers_in_order():
    for value in ("[5,5]", "[9,1]"):
        with pytest.raises(UserError, match=r"data.value_range=\[\d, \d\]: must be \[low,high\], low is black"):
            compose_configs("train", ["data=image_folder", "data.root=in", f"data.value_range={value}"])
    for value in ("[0,4095]", "[-1.0,1.0]", "auto", "null"):
        compose_configs("train", ["data=image_folder", "data.root=in", f"data.value_range={value}"])
