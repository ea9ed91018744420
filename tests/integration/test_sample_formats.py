"""`sample` writes the values, colors and alpha of the training images: 16 bits, floats, palettes, hard edges."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.runs import TINY, run

RNG = np.random.default_rng(0)
SHORT = [
    *TINY,
    "max_steps=2",
    "sample_every=2",
    "val_every=0",
    "logger=none",
    "data.image_size=8",
    "global_batch_size=4",
]
COLORS = [(26, 28, 44), (244, 120, 20), (90, 200, 250)]


def train(folder: Path, *overrides: str) -> str:
    return run("train", "data=image_folder", "data.root=in", "run_dir=run", *SHORT, *overrides, cwd=folder)


def sample(folder: Path, *overrides: str, code: int = 0) -> str:
    return run("sample", "run=run", "num_images=4", *overrides, cwd=folder, code=code)


def manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def deep_run(tmp_path_factory) -> tuple[Path, str]:
    """A run on 12-bit values in 16-bit files."""
    folder = tmp_path_factory.mktemp("deep")
    (folder / "in").mkdir()
    for k in range(6):
        values = np.roll(np.linspace(0, 4000, 64), 9 * k).reshape(8, 8).astype(np.uint16)
        Image.fromarray(values).save(folder / "in" / f"{k}.png")
    return folder, train(folder, "data.channels=1")


def test_the_range_is_found_once_stored_and_written_again(deep_run):
    folder, printed = deep_run
    assert "values     0 is black, 4095 white; training keeps 8 bits (data.value_range)" in printed
    assert yaml.safe_load((folder / "run" / "config.yaml").read_text(encoding="utf-8"))["data"]["value_range"] == [
        0,
        4095,
    ]
    sample(folder, "out=plain")
    sample(folder, "out=deep", "format=png16")
    sample(folder, "out=floats", "format=npy_float")
    floats = np.load(folder / "floats" / "images.npy")
    assert (floats.dtype, floats.shape) == (np.float32, (4, 8, 8, 1))
    assert 0 <= floats.min() < floats.max() <= 4095
    assert len(np.unique(floats)) > 200  # of 256 pixels: not rounded to 8 bits
    for k in range(4):
        with Image.open(folder / "deep" / f"{k:05d}.png") as image:
            assert image.mode == "I;16"
            np.testing.assert_array_equal(np.asarray(image), floats[k, :, :, 0].round())
        for name in ("plain", "floats"):
            eight = np.asarray(Image.open(folder / name / f"{k:05d}.png"))
            assert np.abs(eight / 255 * 4095 - floats[k, :, :, 0]).max() <= 8.1
    for name, kind in (("plain", "png"), ("deep", "png16")):
        assert [manifest(folder / name)[key] for key in ("format", "value_range")] == [kind, [0, 4095]]


def test_a_resumed_run_keeps_its_range(deep_run):
    folder, _ = deep_run
    Image.fromarray(np.full((8, 8), 60000, np.uint16)).save(folder / "in" / "bright.png")
    try:
        printed = run("train", "resume=run", "max_steps=3", "accept=[data]", cwd=folder)
    finally:
        (folder / "in" / "bright.png").unlink()
    assert "0 is black, 4095 white" in printed


def test_pixel_art_comes_back_as_pixel_art(tmp_path):
    (tmp_path / "in").mkdir()
    for k in range(6):
        icon = np.zeros((8, 8, 4), np.uint8)
        icon[1:7, 1:7, :3] = np.array(COLORS)[RNG.integers(0, 3, (6, 6))]
        icon[1:7, 1:7, 3] = 255
        Image.fromarray(icon).save(tmp_path / "in" / f"{k}.png")
    train(tmp_path, "data.channels=4", "data.alpha=hard", "data.resample=nearest")
    assert (tmp_path / "run" / "palette.hex").read_text(encoding="utf-8").split() == ["#1a1c2c", "#5ac8fa", "#f47814"]
    run("export", "run=run", "out=exported", cwd=tmp_path)
    for k, source in enumerate(("run", "exported")):
        run("sample", f"run={source}", "num_images=4", "palette=auto", f"out=out{k}", cwd=tmp_path)
    sample(tmp_path, "out=two", "palette=[000000,ffffff]")
    for folder, allowed in (("out0", COLORS), ("out1", COLORS), ("two", [(0, 0, 0), (255, 255, 255)])):
        for k in range(4):
            image = np.asarray(Image.open(tmp_path / folder / f"{k:05d}.png"))
            assert set(np.unique(image[..., 3])) <= {0, 255}
            assert set(map(tuple, image[image[..., 3] > 0][:, :3].tolist())) <= set(allowed)
            assert not image[image[..., 3] == 0].any()
    assert manifest(tmp_path / "out0")["palette"] == ["#1a1c2c", "#5ac8fa", "#f47814"]
    preview = np.asarray(Image.open(tmp_path / "run" / "samples" / "step-00000002.png"))
    assert preview.shape[2] == 4
    for words, message in (
        (["format=png16"], "format=png16: Pillow writes 16 bits of gray only, and images of this run have 4 channels"),
        (["palette=gone.hex"], "palette=gone.hex: file not found"),
        (["format=npy_float", "npy=true"], "both write images.npy"),
    ):
        assert message in sample(tmp_path, *words, code=2)
