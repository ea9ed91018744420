"""Pictures and floats are exact inverses; grids, rows of classes and GIFs hold every pixel where it belongs."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_lit.imaging.grids import draw_grid, hstack_images, save_gif, to_float, to_pil, to_uint8
from diffusion_lit.imaging.rows import describe_rows
from diffusion_lit.sampling.previews import draw_class_grid, format_caption, labels_in_rows, preview_labels
from tests.cases import each
from tests.images import enlarge, find_tile, noise, pixels

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
every_mode = each("channels", MODES)


# ----------------------------------------------------------------------------------------------- pictures and floats


def test_every_uint8_survives_the_way_to_float_and_back():
    values = torch.arange(256, dtype=torch.uint8)
    there = to_float(values)
    assert there.dtype == torch.float32
    assert (there[0], there[-1]) == (-1, 1)
    assert (there.diff() > 0).all()
    assert torch.equal(to_uint8(there), values)


def test_floats_go_to_the_nearest_uint8_and_are_clipped_outside():
    values = to_float(torch.arange(256, dtype=torch.uint8))
    for shift in (-0.49, 0.49):  # of a step of 2 / 255
        assert torch.equal(to_uint8(values + shift * 2 / 255), torch.arange(256, dtype=torch.uint8))
    assert to_uint8(torch.tensor([-7.0, -1.01, 1.01, 1e9])).tolist() == [0, 0, 255, 255]


@every_mode
def test_a_picture_has_the_mode_of_its_channels_and_all_its_pixels(channels):
    image = noise(1, channels, 3, 5)[0]
    picture = to_pil(image)
    assert (picture.mode, picture.size) == (MODES[channels], (5, 3))
    assert np.array_equal(pixels(picture), image.permute(1, 2, 0).numpy())


# -------------------------------------------------------------------------------------------------------------- grids


@every_mode
@each(("height", "width", "zoom"), [(8, 8, 8), (16, 16, 4), (5, 13, 4), (48, 48, 1)])
def test_every_image_stands_once_in_its_place_of_the_grid(channels, height, width, zoom):
    images = noise(7, channels, height, width)
    picture = draw_grid(images, columns=3)
    assert picture.mode == MODES[channels]  # alpha is kept
    places = [find_tile(picture, enlarge(image, zoom)) for image in images]
    assert all(len(place) == 1 for place in places)
    tops, lefts = ([place[0][axis] for place in places] for axis in (0, 1))
    assert lefts[0] < lefts[1] < lefts[2]
    assert lefts == [lefts[k % 3] for k in range(7)]
    assert tops == [tops[k - k % 3] for k in range(7)]
    assert tops[0] < tops[3] < tops[6]
    # equal distances, no image over another, and nothing else in the picture
    assert lefts[1] - lefts[0] == lefts[2] - lefts[1] > width * zoom
    assert tops[3] - tops[0] == tops[6] - tops[3] > height * zoom
    rest = pixels(picture).copy()
    for top, left in zip(tops, lefts, strict=True):
        rest[top : top + height * zoom, left : left + width * zoom] = 255
    assert (rest == 255).all()


@every_mode
def test_titles_and_names_stand_beside_the_images_and_not_on_them(channels):
    images = noise(6, channels)
    plain = draw_grid(images, columns=2)
    named = draw_grid(images, columns=2, row_names=["cat", "a long name", "dog"], title="EMA")
    assert named.mode == MODES[channels]
    width, height = plain.size
    left, top = named.width - width, named.height - height
    assert left > 0
    assert top > 0
    assert np.array_equal(pixels(named)[top:, left:], pixels(plain))
    margin = pixels(named)[top:, :left]
    cell = (height - 2) // 3
    for row in range(3):  # something is written at each row, and at each row something else
        assert (margin[row * cell : (row + 1) * cell] < 128).any()
    assert not np.array_equal(margin[:cell], margin[2 * cell : 3 * cell])
    assert (pixels(named)[:top] < 128).any()
    if channels == 4:
        assert (pixels(named)[:top, :, 3] == 255).all()


@pytest.mark.parametrize("names", [(), ("a name in front",)])
def test_a_title_wider_than_the_grid_is_not_cut(names):
    title = "raw, step 123456 of a run with a very long name"
    picture = pixels(draw_grid(noise(1, 1), columns=1, row_names=names, title=title))
    wide = pixels(draw_grid(noise(20, 1), columns=20, row_names=names, title=title))
    band = 12
    assert (picture[:band] < 128).sum() == (wide[:band] < 128).sum()


def test_grids_beside_each_other_keep_their_pixels_and_mode():
    for channels, mode in MODES.items():
        left, right = draw_grid(noise(4, channels), 2), draw_grid(noise(2, channels, seed=1), 2)
        both = hstack_images([left, right])
        assert both.mode == mode
        assert find_tile(both, pixels(left)) == [(0, 0)]
        assert find_tile(both, pixels(right)) == [(0, both.width - right.width)]
        assert both.width > left.width + right.width
        assert both.height == max(left.height, right.height)
        assert (pixels(both)[right.height :, left.width :] == 255).all()


# ---------------------------------------------------------------------------------------------------- rows of classes


@each("num_images", [1, 2, 3, 10, 64, 100])
def test_classes_share_the_images_equally_in_their_order(num_images):
    classes = [7, 2, 5]
    labels = labels_in_rows(classes, num_images)
    assert len(labels) == num_images
    counts = [labels.count(label) for label in classes]
    assert sum(counts) == num_images
    assert counts == sorted(counts, reverse=True)
    assert counts[0] - counts[-1] <= 1
    assert labels == sorted(labels, key=classes.index)  # runs, in the order asked for


@pytest.mark.parametrize(("num_classes", "rows"), [(1, 1), (10, 10), (16, 16), (1000, 16)])
def test_a_preview_has_a_row_of_eight_for_each_of_at_most_sixteen_classes(num_classes, rows):
    labels = preview_labels(num_classes)
    chosen = labels[::8]
    assert labels == [row for row in chosen for _ in range(8)]
    assert len(chosen) == len(set(chosen)) == rows
    assert (chosen[0], chosen[-1]) == (0, num_classes - 1)
    gaps = {after - before for before, after in itertools.pairwise(chosen)}
    assert not gaps or max(gaps) - min(gaps) <= 1  # evenly


def test_a_grid_of_some_classes_says_so():
    names = [f"class {k}" for k in range(37)]
    config = {"data": {"class_names": names}, "sampler": {"name": "ddim", "steps": 5}, "seed": 0, "guidance_scale": 1}
    caption = format_caption(config, ["EMA"], 5)
    assert caption.startswith("rows, 16 of 37 classes: class 0, class 2, class 5")
    assert "class 36;" in caption
    config["data"]["class_names"] = names[:16]
    assert format_caption(config, ["EMA"], 5).startswith("rows: class 0, class 1")
    assert [describe_rows(count, 16) for count in (0, 1, 16, 17)] == ["", "", "", ", 16 of 17 classes"]


def test_a_preview_without_classes_is_a_square():
    labels = preview_labels(0)
    assert labels == [0] * 64
    images = noise(64, 3)
    assert np.array_equal(pixels(draw_class_grid(images, labels, [])), pixels(draw_grid(images, columns=8)))


@every_mode
def test_each_class_has_its_row_even_if_it_has_fewer_images(channels):
    images, labels = noise(6, channels), [4, 4, 4, 1, 0, 0]
    names = ["zero", "one", "two", "three", "four"]
    picture = draw_class_grid(images, labels, names)
    places = [find_tile(picture, enlarge(image, 8)) for image in images]
    assert all(len(place) == 1 for place in places)
    places = [place[0] for place in places]
    rows = sorted({top for top, _ in places})
    assert [rows.index(top) for top, _ in places] == [0, 0, 0, 1, 2, 2]
    columns = sorted({left for _, left in places})
    assert [columns.index(left) for _, left in places] == [0, 1, 2, 0, 0, 1]
    # where a class has no more images there is paper, not a black square
    right = columns[2]
    assert (pixels(picture)[rows[1] :, right:] == 255).all()
    # and the names are those of the classes of the rows, in the order in which the labels came
    expected = draw_grid(noise(9, channels), columns=3, row_names=["four", "one", "zero"])
    assert np.array_equal(pixels(picture)[:, : columns[0]], pixels(expected)[:, : columns[0]])


def test_scattered_labels_are_gathered_in_their_rows():
    images = noise(6, 1)
    picture = draw_class_grid(images, [1, 0, 1, 0, 1, 0], ["a", "b"])
    gathered = draw_class_grid(images[[0, 2, 4, 1, 3, 5]], [1, 1, 1, 0, 0, 0], ["a", "b"])
    assert np.array_equal(pixels(picture), pixels(gathered))


# --------------------------------------------------------------------------------------------------------------- GIFs


@every_mode
def test_a_gif_has_all_frames_and_holds_the_last(tmp_path, channels):
    frames = [draw_grid(torch.full((1, channels, 8, 8), 40 * k, dtype=torch.uint8), 1) for k in range(1, 6)]
    save_gif(frames, tmp_path / "a.gif", frame_ms=70, hold_ms=900)
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 5
        assert gif.info["loop"] == 0  # endless
        durations = []
        for k in range(5):
            gif.seek(k)
            durations.append(gif.info["duration"])
            shown = np.asarray(gif.convert("RGB"))
            value = 40.0 * (k + 1)
            if channels == 4:  # on white paper
                value = value * value / 255 + 255 - value
            assert shown.shape[:2] == frames[k].size[::-1]
            assert abs(shown[20, 20].astype(float) - value).max() <= 2  # a palette of 256 colours
    assert durations == [70, 70, 70, 70, 900]


def test_what_is_transparent_is_white_in_a_gif(tmp_path):
    hidden = torch.tensor([10, 20, 30, 0], dtype=torch.uint8).view(4, 1, 1).expand(4, 8, 8)
    save_gif([to_pil(hidden)], tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as gif:
        assert (np.asarray(gif.convert("RGB")) == 255).all()
