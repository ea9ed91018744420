"""Skins seen from both sides, against a skin painted by hand, and where they are shown."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from diffusion_lit.data.decoding import decoding_from_config
from diffusion_lit.imaging.grids import add_checkerboard, to_pil
from diffusion_lit.imaging.skins import render_images, render_skin_side, render_skins
from tests.skins import BACK, FRONT, paint_skin, to_pixels

OUTER_FRONT = {
    "head": (40, 8, 48, 16, "#101010"),
    "body": (20, 36, 28, 48, "#202020"),
    "right arm": (44, 36, 48, 48, "#303030"),
    "left arm": (52, 52, 56, 64, "#404040"),
    "right leg": (4, 36, 8, 48, "#505050"),
    "left leg": (4, 52, 8, 64, "#606060"),
}
OUTER_BACK = {
    "head": (56, 8, 64, 16, "#707070"),
    "body": (32, 36, 40, 48, "#808080"),
    "right arm": (52, 36, 56, 48, "#909090"),
    "left arm": (60, 52, 64, 64, "#a0a0a0"),
    "right leg": (12, 36, 16, 48, "#b0b0b0"),
    "left leg": (12, 52, 16, 64, "#c0c0c0"),
}
# where they are in the figure; the right arm of somebody who looks at us is on our left
SEEN = {
    "head": (4, 0, 12, 8),
    "body": (4, 8, 12, 20),
    "right arm": (0, 8, 4, 20),
    "left arm": (12, 8, 16, 20),
    "right leg": (4, 20, 8, 32),
    "left leg": (8, 20, 12, 32),
}
OTHER_SIDE = {"right": "left", "left": "right"}


def expected(face: dict, back: bool = False) -> np.ndarray:
    picture = Image.new("RGBA", (16, 32), (0, 0, 0, 0))
    for part, (*_, colour) in face.items():
        side, _, limb = part.partition(" ")
        picture.paste(colour, SEEN[f"{OTHER_SIDE[side]} {limb}" if back and limb else part])
    return np.array(picture)


def test_each_part_stands_in_its_place_from_both_sides():
    skin = paint_skin(FRONT, BACK)
    assert np.array_equal(to_pixels(render_skin_side(skin)), expected(FRONT))
    assert np.array_equal(to_pixels(render_skin_side(skin, back=True)), expected(BACK, back=True))


def test_the_outer_layer_covers_the_body_and_can_be_left_out():
    skin = paint_skin(FRONT, BACK, OUTER_FRONT, OUTER_BACK)
    assert np.array_equal(to_pixels(render_skin_side(skin)), expected(OUTER_FRONT))
    assert np.array_equal(to_pixels(render_skin_side(skin, back=True)), expected(OUTER_BACK, back=True))
    assert np.array_equal(to_pixels(render_skin_side(skin, outer=False)), expected(FRONT))
    assert np.array_equal(to_pixels(render_skin_side(skin, outer=False, back=True)), expected(BACK, back=True))


def test_parts_are_not_mirrored():
    skin = paint_skin(FRONT, BACK)
    skin[:, 8:16, 8] = torch.tensor([255, 255, 255, 255], dtype=torch.uint8)[:, None]  # its right cheek
    skin[:, 8:16, 24] = torch.tensor([255, 255, 255, 255], dtype=torch.uint8)[:, None]  # its left ear, from behind
    assert (render_skin_side(skin)[:, :8, 4] == 255).all()
    assert (render_skin_side(skin, back=True)[:, :8, 4] == 255).all()


def test_alpha_above_the_threshold_is_there_and_below_is_not():
    skin = paint_skin(FRONT, OUTER_FRONT)
    skin[3, 8:16, 40:48] = 127  # the hat is hardly there...
    skin[3, 36:48, 20:28] = 128  # ...the jacket is
    skin[3, 8:16, 8:12] = 100  # and half of the face is not
    seen = render_skin_side(skin)
    assert (seen[3, :8, 4:8] == 0).all()
    assert (seen[:3, :8, 4:8] == 0).all()  # no colour hides under it
    assert seen[:, 0, 8].tolist() == [255, 0, 0, 255]
    assert seen[:, 8, 4].tolist() == [32, 32, 32, 255]
    assert render_skin_side(skin, threshold=0.2)[:, 0, 4].tolist() == [16, 16, 16, 255]


def test_the_old_layout_mirrors_right_limbs():
    old = paint_skin({part: FRONT[part] for part in ("head", "body", "right arm", "right leg")}, size=(64, 32))
    old[:, 20:32, 44] = 9  # the outer edge of the right arm
    seen = render_skin_side(old)
    new = expected({**FRONT, "left arm": (0, 0, 0, 0, "blue"), "left leg": (0, 0, 0, 0, "magenta")})
    new[8:20, [0, 15]] = [0, 0, 0, 0]  # painted with an alpha of 9: not there, on both sides
    assert np.array_equal(to_pixels(seen), new)


def test_figures_hold_both_sides_enlarged_by_a_whole_factor():
    skins = torch.stack([paint_skin(FRONT, BACK), paint_skin(FRONT, BACK, OUTER_FRONT)])
    both = render_skins(skins)
    assert both.shape == (2, 4, 64, 76)
    small = both[:, :, ::2, ::2]
    assert torch.equal(small.repeat_interleave(2, -1).repeat_interleave(2, -2), both)
    assert torch.equal(small[..., 2:18], render_skin_side(skins))
    assert torch.equal(small[..., 20:36], render_skin_side(skins, back=True))
    assert (small[..., [0, 1, 18, 19, 36, 37]] == 0).all()
    bare = render_skins(skins, outer=False, threshold=0.2)[:, :, ::2, ::2]
    assert torch.equal(bare[..., 20:36], render_skin_side(skins, back=True, outer=False, threshold=0.2))
    assert not torch.equal(bare[1], small[1])


def test_only_skins_are_shown_as_skins():
    images = torch.randint(0, 256, (3, 4, 64, 64), dtype=torch.uint8)
    assert render_images(images, "none") is images
    assert torch.equal(render_images(images, "skin"), render_skins(images))
    assert render_images(images[None], "skin").shape == (1, 3, 4, 64, 76)
    with pytest.raises(ValueError, match="RGBA of 64x64"):
        render_images(images[:, :3], "skin")


def test_what_is_transparent_shows_a_checkerboard_and_what_is_not_itself():
    image = paint_skin(FRONT)
    seen = np.array(add_checkerboard(to_pil(image)))
    there = image[3].numpy() == 255
    assert np.array_equal(seen[there], to_pixels(image)[there])
    assert (seen[..., 3] == 255).all()
    board = seen[~there][:, :3]
    assert len(np.unique(board, axis=0)) == 2
    assert board.min() >= 220  # light
    grey = Image.new("L", (4, 4), 7)
    assert add_checkerboard(grey) is grey


def test_skins_of_a_real_set_have_faces_and_legs(shared_data, tmp_path):
    import tarfile

    with tarfile.open(shared_data / "luanti_skins64.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    files = sorted(tmp_path.rglob("*.png"))[:50]
    skins = torch.stack([torch.from_numpy(np.array(Image.open(f).convert("RGBA"))).permute(2, 0, 1) for f in files])
    seen = render_skin_side(skins)
    assert (seen[:, 3] == 255).float().mean() > 0.6  # a whole body is 11 / 16 of it
    assert (seen[:, 3, :8, :4] == 0).all()
    face, back = seen[:, :3, :8, 4:12].float(), render_skin_side(skins, back=True)[:, :3, :8, 4:12].float()
    assert (face - back).abs().mean() > 10  # eyes and a mouth on one side, hair on the other


# where the faces of left limbs come from, mirrored: (left, top, right, bottom) to the same of the right limbs
LEFT_FROM_RIGHT = {
    (20, 48, 24, 52): (4, 16, 8, 20), (24, 48, 28, 52): (8, 16, 12, 20), (16, 52, 20, 64): (8, 20, 12, 32),
    (20, 52, 24, 64): (4, 20, 8, 32), (24, 52, 28, 64): (0, 20, 4, 32), (28, 52, 32, 64): (12, 20, 16, 32),
    (36, 48, 40, 52): (44, 16, 48, 20), (40, 48, 44, 52): (48, 16, 52, 20), (32, 52, 36, 64): (48, 20, 52, 32),
    (36, 52, 40, 64): (44, 20, 48, 32), (40, 52, 44, 64): (40, 20, 44, 32), (44, 52, 48, 64): (52, 20, 56, 32),
}  # fmt: skip


def test_skins_of_the_old_layout_are_trained_on_as_whole_ones(tmp_path):
    old = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 64, 4), np.uint8))
    old.save(tmp_path / "old.png")
    wanted = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    wanted.paste(old, (0, 0))
    for left, right in LEFT_FROM_RIGHT.items():
        wanted.paste(ImageOps.mirror(old.crop(right)), left[:2])
    data = {"image_size": 64, "channels": 4, "resample": "nearest", "render": "skin"}
    assert np.array_equal(decoding_from_config(data)(tmp_path / "old.png").transpose(1, 2, 0), np.array(wanted))
    cropped = decoding_from_config(data | {"render": "none"})(tmp_path / "old.png")  # any other picture of 64x32
    assert np.array_equal(cropped.transpose(1, 2, 0), np.array(old.resize((128, 64), Image.NEAREST))[:, 32:96])
