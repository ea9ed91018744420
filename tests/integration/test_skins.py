"""A run on skins."""

import numpy as np
import torch
from PIL import Image

from diffusion_lit.imaging.grids import to_pil
from diffusion_lit.imaging.skins import render_skins
from tests.runs import TINY, run

# (left, top, right, bottom) of the faces in the skin, as the game's texture has them, and the colour painted there
FRONT = {
    "head": (8, 8, 16, 16, "red"),
    "body": (20, 20, 28, 32, "lime"),
    "right arm": (44, 20, 48, 32, "blue"),
    "left arm": (36, 52, 40, 64, "cyan"),
    "right leg": (4, 20, 8, 32, "magenta"),
    "left leg": (20, 52, 24, 64, "yellow"),
}


BACK = {
    "head": (24, 8, 32, 16, "maroon"),
    "body": (32, 20, 40, 32, "green"),
    "right arm": (52, 20, 56, 32, "navy"),
    "left arm": (44, 52, 48, 64, "teal"),
    "right leg": (12, 20, 16, 32, "purple"),
    "left leg": (28, 52, 32, 64, "olive"),
}


def painted(*faces: dict, size: tuple[int, int] = (64, 64)) -> torch.Tensor:
    picture = Image.new("RGBA", size, (0, 0, 0, 0))
    for boxes in faces:
        for left, top, right, bottom, colour in boxes.values():
            picture.paste(colour, (left, top, right, bottom))
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def pixels(image: torch.Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy()


SKINS = ["data=image_folder", "data.render=skin", "data.channels=4", "data.image_size=64", "data.flip=0"]


def test_a_run_on_skins_shows_them_and_keeps_the_files_raw(tmp_path):
    (tmp_path / "in").mkdir()
    for k in range(4):
        to_pil(painted(FRONT, BACK)).save(tmp_path / "in" / f"{k}.png")
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
        both = pixels(render_skins(torch.from_numpy(image).permute(2, 0, 1)))
        top, left = 2 + k // 2 * 66, 2 + k % 2 * 78
        cell, there = grid[top : top + 64, left : left + 76], both[..., 3] > 0
        assert np.array_equal(cell[there], both[there])
    told = run("train", *[word for word in words if word != "data.channels=4"], "run_dir=b", cwd=tmp_path, code=2)
    assert "data.channels=4 data.image_size=64" in told
