"""A run on skins."""

import numpy as np
import torch
from PIL import Image

from diffusion_lit.imaging.grids import to_pil
from diffusion_lit.imaging.skins import render_skins
from tests.runs import TINY, run
from tests.skins import BACK, FRONT, paint_skin, to_pixels

SKINS = ["data=image_folder", "data.render=skin", "data.channels=4", "data.image_size=64", "data.flip=0"]


def test_a_run_on_skins_shows_them_and_keeps_the_files_raw(tmp_path):
    (tmp_path / "in").mkdir()
    for k in range(4):
        to_pil(paint_skin(FRONT, BACK)).save(tmp_path / "in" / f"{k}.png")
    words = [*TINY, *SKINS, "data.root=in", "max_steps=1", "checkpoint_every=1", "val_every=0", "run_dir=run"]
    run("train", *words, "global_batch_size=2", "sampler.steps=1", "sampler.batch_size=4", cwd=tmp_path)
    preview = Image.open(tmp_path / "run" / "samples" / "step-00000001.png")
    assert preview.size[1] > 8 * 64
    assert preview.size[0] > 2 * 8 * 76  # figures of both sides, for EMA and raw
    config = tmp_path / "run" / "config.yaml"  # a run that is older than the key goes on
    config.write_text(config.read_text().replace("  render: skin\n", ""))
    run("train", "resume=run", "max_steps=2", cwd=tmp_path)
    assert "render: skin" in config.read_text()
    run("sample", "run=run", "num_images=4", "out=out", "npy=true", "gif=true", cwd=tmp_path)
    raw = np.load(tmp_path / "out" / "images.npy")
    grid = np.array(Image.open(tmp_path / "out" / "grid.png"))
    for k, image in enumerate(raw):
        assert np.array_equal(np.array(Image.open(tmp_path / "out" / f"{k:05d}.png")), image)
        both = to_pixels(render_skins(torch.from_numpy(image).permute(2, 0, 1)))
        top, left = 2 + k // 2 * 66, 2 + k % 2 * 78
        cell, there = grid[top : top + 64, left : left + 76], both[..., 3] > 0
        assert np.array_equal(cell[there], both[there])
    told = run("train", *[word for word in words if word != "data.channels=4"], "run_dir=b", cwd=tmp_path, code=2)
    assert "data.channels=4 data.image_size=64" in told
