"""From files to uint8: every kind of picture, every kind of broken one, and what a folder of them means."""

import io
import os
import random
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from diffusion_lit.data import decoding
from diffusion_lit.data.decoding import Decoding, Encoded, decode_images
from diffusion_lit.data.sources.concat import Concat
from diffusion_lit.data.sources.data_source import Split
from diffusion_lit.data.sources.digits import Digits
from diffusion_lit.data.sources.folder import ImageFolder
from diffusion_lit.data.sources.huggingface import HuggingFace
from diffusion_lit.data.sources.torchvision import TorchvisionSet
from diffusion_lit.data.store import ImageStore, load_split
from diffusion_lit.system.errors import Exit, UserError
from tests.cases import each

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (8, 8), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, (8, 8), dtype=np.uint8)


def decoded(path: Path, channels: int = 3, size: int = 8, **settings) -> np.ndarray:
    """(H, W, C) or (H, W), as Pillow has it."""
    array = Decoding(size, channels, **settings)(path)
    assert array.dtype == np.uint8
    assert array.shape == (channels, size, size)
    return array[0] if channels == 1 else array.transpose(1, 2, 0)


def luma(rgb: np.ndarray) -> np.ndarray:
    """ITU-R 601-2, as Pillow rounds it."""
    return ((rgb.astype(int) @ [19595, 38470, 7471] + 0x8000) >> 16).astype(np.uint8)


def on(background: tuple[int, int, int], rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Laid on a background, exact."""
    a = alpha[..., None] / 255
    return rgb * a + np.array(background) * (1 - a)


def saved(image: Image.Image, path: Path, **settings) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **settings)
    return path


def three(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


def with_alpha(rgb: np.ndarray, alpha: np.ndarray | int = 255) -> np.ndarray:
    return np.dstack([rgb, np.broadcast_to(np.uint8(alpha), rgb.shape[:2])])


# ------------------------------------------------------------------------------------------ modes


def test_rgb_keeps_its_bytes(tmp_path):
    path = saved(Image.fromarray(RGB), tmp_path / "a.png")
    np.testing.assert_array_equal(decoded(path), RGB)
    np.testing.assert_array_equal(decoded(path, 1), luma(RGB))
    np.testing.assert_array_equal(decoded(path, 4), with_alpha(RGB))


def test_grey_keeps_its_bytes(tmp_path):
    path = saved(Image.fromarray(GREY), tmp_path / "a.png")
    np.testing.assert_array_equal(decoded(path, 1), GREY)
    np.testing.assert_array_equal(decoded(path), three(GREY))
    np.testing.assert_array_equal(decoded(path, 4), with_alpha(three(GREY)))


def test_one_bit_is_black_and_white(tmp_path):
    path = saved(Image.fromarray(GREY > 127), tmp_path / "a.png")
    with Image.open(path) as image:
        assert image.mode == "1"
    np.testing.assert_array_equal(decoded(path, 1), np.where(GREY > 127, 255, 0))


def test_a_palette_is_looked_up(tmp_path):
    indices = RNG.integers(0, 4, (8, 8), dtype=np.uint8)
    colours = np.array([[10, 20, 30], [250, 0, 0], [0, 250, 0], [0, 0, 250]], dtype=np.uint8)
    image = Image.frombytes("P", (8, 8), indices.tobytes())
    image.putpalette(colours.tobytes())
    np.testing.assert_array_equal(decoded(saved(image, tmp_path / "a.png")), colours[indices])
    path = saved(image, tmp_path / "b.png", transparency=1)  # one colour is a hole
    hole = indices == 1
    np.testing.assert_array_equal(decoded(path), np.where(hole[..., None], 255, colours[indices]))
    np.testing.assert_array_equal(
        decoded(path, background=(1, 2, 3)), np.where(hole[..., None], (1, 2, 3), colours[indices])
    )
    np.testing.assert_array_equal(decoded(path, 4), with_alpha(colours[indices], np.where(hole, 0, 255)))
    image = Image.open(saved(image, tmp_path / "c.png", transparency=bytes([255, 128, 0, 255])))  # alpha of each colour
    assert image.mode == "P"
    np.testing.assert_array_equal(decoded(tmp_path / "c.png", 4)[..., 3], np.array([255, 128, 0, 255])[indices])


def test_alpha_is_laid_on_the_background_or_kept(tmp_path):
    path = saved(Image.fromarray(with_alpha(RGB, ALPHA)), tmp_path / "a.png")
    np.testing.assert_array_equal(decoded(path, 4), with_alpha(RGB, ALPHA))
    for background in ((255, 255, 255), (0, 0, 0), (10, 200, 30)):
        expected = on(background, RGB, ALPHA)
        assert np.abs(decoded(path, background=background) - expected).max() <= 1
        assert np.abs(decoded(path, 1, background=background) - luma(expected.round())).max() <= 2


def test_a_fully_transparent_picture_is_the_background(tmp_path):
    """Not the colour that happens to hide under the hole."""
    path = saved(Image.new("RGBA", (8, 8), (200, 0, 0, 0)), tmp_path / "a.png")
    assert (decoded(path, background=(1, 2, 3)) == (1, 2, 3)).all()


def test_grey_with_alpha(tmp_path):
    path = saved(Image.fromarray(np.dstack([GREY, ALPHA]), "LA"), tmp_path / "a.png")
    np.testing.assert_array_equal(decoded(path, 4), with_alpha(three(GREY), ALPHA))
    assert np.abs(decoded(path, 1) - on((255, 255, 255), three(GREY), ALPHA)[..., 0]).max() <= 1


def test_a_transparent_colour_of_an_rgb_png(tmp_path):
    rgb = np.where(GREY[..., None] > 127, np.uint8([9, 8, 7]), RGB)
    path = saved(Image.fromarray(rgb), tmp_path / "a.png", transparency=(9, 8, 7))
    expected = np.where((rgb == (9, 8, 7)).all(-1, keepdims=True), 255, rgb)
    np.testing.assert_array_equal(decoded(path), expected)


def test_cmyk_is_mixed(tmp_path):
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # no cyan: red
    assert (decoded(saved(cmyk, tmp_path / "a.tif")) == (255, 0, 0)).all()
    assert np.abs(decoded(saved(cmyk, tmp_path / "a.jpg", quality=100)).astype(int) - (255, 0, 0)).max() <= 3


def test_arrays_are_decoded_like_files(tmp_path):
    for array, channels in ((GREY, 1), (RGB, 3), (with_alpha(RGB, ALPHA), 4)):
        path = saved(Image.fromarray(array), tmp_path / "a.png")
        for wanted in (1, 3, 4):
            np.testing.assert_array_equal(Decoding(8, wanted)(array), Decoding(8, wanted)(path))
        np.testing.assert_array_equal(decoded(path, channels), array)


# ------------------------------------------------------------------------------------------ files


@each("tag", range(1, 9))
def test_exif_rotation_is_applied(tmp_path, tag):
    """All eight: stored turned, shown upright."""
    upright = Image.fromarray(RGB)
    undo = {
        2: 0,
        3: 3,
        4: 1,
        5: 5,
        6: 2,
        7: 6,
        8: 4,
    }  # Image.Transpose that takes the upright picture to the stored one
    stored = upright if tag == 1 else upright.transpose(Image.Transpose(undo[tag]))
    exif = Image.Exif()
    exif[0x0112] = tag
    np.testing.assert_array_equal(decoded(saved(stored, tmp_path / "a.png", exif=exif)), RGB)


def test_an_animation_is_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    path = saved(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert (decoded(path) == (255, 0, 0)).all()
    path = saved(frames[0], tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert (decoded(path) == (255, 0, 0)).all()


def test_the_content_counts_not_the_extension(tmp_path):
    path = saved(Image.fromarray(RGB), tmp_path / "a.jpg", format="PNG")
    np.testing.assert_array_equal(decoded(path), RGB)


def test_a_name_that_is_not_utf8(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    saved(Image.fromarray(RGB), tmp_path / "a.png").rename(path)
    np.testing.assert_array_equal(decoded(path), RGB)
    (split,) = ImageFolder(str(tmp_path)).splits().values()
    assert split.images == [path]


def test_a_picture_of_the_right_size_is_not_resampled(tmp_path):
    path = saved(Image.fromarray(RGB), tmp_path / "a.png")
    for resample in ("nearest", "bilinear", "bicubic", "area"):
        np.testing.assert_array_equal(decoded(path, resample=resample), RGB)


def test_the_shorter_side_fits_and_the_centre_is_cut_out(tmp_path):
    wide = np.zeros((8, 24, 3), dtype=np.uint8)
    wide[:, 8:16] = RGB
    np.testing.assert_array_equal(decoded(saved(Image.fromarray(wide), tmp_path / "a.png")), RGB)
    tall = wide.transpose(1, 0, 2)
    np.testing.assert_array_equal(decoded(saved(Image.fromarray(tall), tmp_path / "b.png")), RGB.transpose(1, 0, 2))
    twice = np.repeat(np.repeat(wide, 2, axis=0), 2, axis=1)
    np.testing.assert_array_equal(decoded(saved(Image.fromarray(twice), tmp_path / "c.png"), resample="area"), RGB)
    np.testing.assert_array_equal(decoded(saved(Image.fromarray(twice), tmp_path / "c.png"), resample="nearest"), RGB)


def test_small_pictures_are_enlarged(tmp_path):
    path = saved(Image.fromarray(RGB), tmp_path / "a.png")
    np.testing.assert_array_equal(decoded(path, size=16, resample="nearest"), RGB.repeat(2, 0).repeat(2, 1))


def test_hidden_colours_do_not_bleed_when_alpha_is_resized(tmp_path):
    half = with_alpha(np.full((16, 16, 3), 255, np.uint8))
    half[:, :7] = (255, 0, 0, 0)  # red under the hole
    shrunk = decoded(saved(Image.fromarray(half), tmp_path / "a.png"), 4)
    visible = shrunk[shrunk[..., 3] > 0]
    assert (visible[:, :3] >= 254).all()


# ------------------------------------------------------------------------------------------ broken files


def broken(folder: Path) -> dict[str, bytes]:
    rng = np.random.default_rng(1)
    noise = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    whole = {suffix: saved(noise, folder / f"whole.{suffix}").read_bytes() for suffix in ("png", "jpg", "gif", "webp")}
    kinds = {f"half.{suffix}": data[: len(data) // 2] for suffix, data in whole.items()}
    kinds |= {f"header.{suffix}": data[:20] for suffix, data in whole.items()}
    kinds |= {"empty.png": b"", "byte.jpg": b"\xff", "page.jpg": b"<!DOCTYPE html><html>404</html>", "text.png": b"no"}
    return kinds


def test_broken_pictures_are_named(tmp_path):
    for name, data in broken(tmp_path / "whole").items():
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(UserError, match=rf"{name}: cannot be read as an image \(.+\)") as caught:
            Decoding(8, 3)(path)
        assert caught.value.exit_code == Exit.DATA
    for path in (tmp_path / "gone.png", tmp_path / "broken_link.png"):
        (tmp_path / "broken_link.png").unlink(missing_ok=True)
        (tmp_path / "broken_link.png").symlink_to("nowhere.png")
        with pytest.raises(UserError, match=path.name):
            Decoding(8, 3)(path)


DAMAGES = (
    lambda data, at, n, dice: data.__setitem__(at, dice.randrange(256)),
    lambda data, at, n, dice: data.__setitem__(at, data[at] ^ 1 << dice.randrange(8)),
    lambda data, at, n, dice: data.__setitem__(slice(at, at + 4), dice.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff"))),
    lambda data, at, n, dice: data.__setitem__(slice(at, at + n), b""),
    lambda data, at, n, dice: data.__setitem__(slice(at, at), data[at : at + n] * 3),
    lambda data, at, n, dice: data.__setitem__(slice(max(1, at), None), b""),
)


def damaged(whole: bytes, dice: random.Random) -> bytes:
    """Some bytes of a file set, flipped, overwritten, left out, repeated or cut off."""
    data = bytearray(whole)
    for _ in range(dice.randrange(1, 6)):
        if data:
            dice.choice(DAMAGES)(data, dice.randrange(len(data)), dice.randrange(1, 9), dice)
    return bytes(data)


@pytest.mark.parametrize("files", [500, pytest.param(10000, marks=pytest.mark.slow)])
def test_fuzzed_pictures_are_named_or_decoded(files):
    """No crash, no message without the name, and no header that one would wait for."""
    dice, wholes = random.Random(files), []
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"):
        for image in (Image.fromarray(RGB), Image.fromarray(GREY), Image.fromarray(RGB).quantize(7)):
            file = io.BytesIO()
            (image.convert("RGB") if kind in ("JPEG", "WEBP") else image).save(file, kind)
            wholes.append(file.getvalue())
    decoding, refused, longest, unnamed = Decoding(8, 3), 0, 0.0, []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for k in range(files):
            started = time.process_time()
            try:
                assert decoding(Encoded(f"fuzzed {k}", damaged(wholes[k % len(wholes)], dice))).shape == (3, 8, 8)
            except UserError as error:
                refused += 1
                unnamed += [str(error)] if not str(error).startswith(f"fuzzed {k}: ") else []
            longest = max(longest, time.process_time() - started)
    print(f"{files} fuzzed files, {refused} refused, the longest took {longest:.3f} s of the processor")
    assert unnamed == []
    assert 0.2 < refused / files < 0.99
    assert longest < 60  # it did not hang


def test_ten_broken_pictures_are_named_and_the_others_counted(tmp_path):
    paths = [saved(Image.fromarray(RGB), tmp_path / f"{k:02d}.png") for k in range(20)]
    for path in paths[3:16]:
        path.write_bytes(b"no picture")
    with pytest.raises(UserError) as caught:
        list(decode_images(paths, Decoding(8, 3), range(20), 20))
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("13 of 20 images cannot be read")
    assert [line.split(":")[0].strip() for line in lines[1:11]] == [str(path) for path in paths[3:13]]
    assert lines[11:] == ["  and 3 more"]


@pytest.mark.parametrize(("clock", "in_threads"), [([0, 9, 10, 11, 20, 25], False), ([0, 9, 10, 15, 20, 21], True)])
def test_pictures_are_decoded_in_the_way_that_was_faster_and_in_their_order(monkeypatch, clock, in_threads):
    times, by, count = iter(clock), {}, 3 * decoding.CHUNK + 100
    monkeypatch.setattr(decoding.time, "perf_counter", lambda: next(times))

    def work(k: int) -> int:
        by[k] = threading.current_thread()
        return k * k

    assert list(decoding.map_in_order(work, range(count))) == [k * k for k in range(count)]
    rest = {by[k] for k in range(count - 100, count)}
    assert (threading.current_thread() not in rest) == in_threads


def test_half_pictures_are_never_let_through():
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_a_picture_too_large_to_decode_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 16)
    path = saved(Image.fromarray(RGB), tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png: .*8x8 are more than 63 pixels\. Raise data\.max_pixels"):
        Decoding(8, 3, max_pixels=63)(path)
    np.testing.assert_array_equal(decoded(path, max_pixels=64), RGB)  # Pillow's own limit is raised


# ------------------------------------------------------------------------------------------ folders


def pictures(root: Path, *names: str) -> Path:
    for name in names:
        saved(Image.fromarray(GREY), root / name)
    return root


def listed(split: Split, root: Path) -> list[tuple[str, int]]:
    return [(str(path.relative_to(root)), label) for path, label in zip(split.images, split.labels, strict=True)]


def test_two_folders_are_classes(tmp_path):
    root = pictures(tmp_path, "b/2.png", "b/1.png", "a/1.JPG", "a/deeper/still/1.jpeg")
    source = ImageFolder(str(root))
    assert source.class_names == ["a", "b"]
    assert listed(source.splits()["train"], root) == [
        ("a/1.JPG", 0),
        ("a/deeper/still/1.jpeg", 0),
        ("b/1.png", 1),
        ("b/2.png", 1),
    ]
    assert source.splits()["train"].labels.dtype == np.int64


def test_labels_none_ignores_the_classes(tmp_path):
    root = pictures(tmp_path, "b/1.png", "a/1.png", "loose.png")
    source = ImageFolder(str(root), labels="none")
    assert source.class_names == []
    assert listed(source.splits()["train"], root) == [("a/1.png", 0), ("b/1.png", 0), ("loose.png", 0)]


def test_one_folder_or_none_is_no_class(tmp_path):
    for names in (["1.png", "2.png"], ["only/1.png", "only/2.png"], ["only/1.png", "2.png"]):
        root = pictures(tmp_path / str(len(names[0])) / names[1].replace("/", "_"), *names)
        source = ImageFolder(str(root))
        assert source.class_names == []
        assert len(source.splits()["train"].images) == 2


@each(("names", "told"), [
    (["all/a/1.png", "all/b/1.png"], True), (["train/all/a/1.png", "train/all/b/1.png"], True),
    (["all/a/1.png"], False), (["a/1.png", "b/1.png"], False), (["all/1.png", "all/a/1.png", "all/b/1.png"], False),
])  # fmt: skip
def test_classes_one_folder_further_down_are_told_of(tmp_path, names, told):
    root = pictures(tmp_path, *names)
    notes = ImageFolder(str(root)).notes
    assert bool(notes) == told
    assert not told or notes[0].startswith(
        f"{root / names[0].partition('/a/')[0]} is the only folder in data.root and has 2"
    )
    assert ImageFolder(str(root), labels="none").notes == []


@each("val", ["val", "valid", "validation", "test", "Val", "dev", "Testing"])
def test_split_folders(tmp_path, val):
    train = "Training" if val == "Testing" else "train"
    root = pictures(tmp_path, f"{train}/a/1.png", f"{train}/b/1.png", f"{val}/b/2.png")
    source = ImageFolder(str(root))
    assert source.class_names == ["a", "b"]
    splits = source.splits()
    assert listed(splits["train"], root) == [(f"{train}/a/1.png", 0), (f"{train}/b/1.png", 1)]
    assert listed(splits["val"], root) == [(f"{val}/b/2.png", 1)]


def test_val_goes_before_test(tmp_path):
    root = pictures(tmp_path, "train/1.png", "test/2.png", "val/3.png")
    assert listed(ImageFolder(str(root)).splits()["val"], root) == [("val/3.png", 0)]


def test_splits_beside_other_folders_are_classes(tmp_path):
    source = ImageFolder(str(pictures(tmp_path, "train/1.png", "extra/2.png")))
    assert source.class_names == ["extra", "train"]


def test_junk_is_no_class_and_no_picture(tmp_path):
    root = pictures(tmp_path, "a/1.png", "b/1.png", "__MACOSX/a/1.png", ".ipynb_checkpoints/1.png", "@eaDir/1.png")
    pictures(root, "a/.ipynb_checkpoints/1-checkpoint.png", "a/__MACOSX/1.png", "b/._1.png", ".thumbnail.png")
    for name in (".DS_Store", "a/.DS_Store", "a/Thumbs.db", "b/desktop.ini", "b/notes.txt", "README.md"):
        (root / name).write_text("junk")
    source = ImageFolder(str(root))
    assert source.class_names == ["a", "b"]
    assert listed(source.splits()["train"], root) == [("a/1.png", 0), ("b/1.png", 1)]


def test_junk_is_nothing_for_other_sources_either(tmp_path, monkeypatch):
    """Pictures of a folder in `concat`, of class folders of a known set, and of a folder that `datasets` lists."""
    root = pictures(tmp_path / "set", "train/a/1.png", "train/b/1.png", "test/a/2.png", "test/b/2.png")
    for place in ("", "train", "train/a", "test"):
        pictures(root / place, "__MACOSX/1.png", ".ipynb_checkpoints/1-checkpoint.png", ".hidden.png")
        for name in ("._1.png", "Thumbs.db", ".DS_Store"):
            (root / place / name).write_bytes(b"junk")
    (root / "train" / "a" / "loop").symlink_to("..")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for source in (
        ImageFolder(str(root)), TorchvisionSet("cifar10", str(root)), Concat([str(root)]), HuggingFace(str(root)),
    ):  # fmt: skip
        assert source.class_names == ["a", "b"], type(source)
        splits = source.splits()
        assert [list(splits[part].labels) for part in ("train", "val")] == [[0, 1], [0, 1]], type(source)
        for split in splits.values():
            images = np.stack(list(decode_images([split.images[k] for k in range(2)], Decoding(8, 1), range(2), 2)))
            np.testing.assert_array_equal(images, np.broadcast_to(GREY, images.shape))


def test_a_picture_that_goes_between_listing_and_decoding_is_named(tmp_path):
    root = pictures(tmp_path, "a/1.png", "b/1.png", "b/2.png")
    (split,) = ImageFolder(str(root)).splits().values()
    (root / "b" / "1.png").unlink()
    with pytest.raises(
        UserError, match=r"1 of 3 images cannot be read.*\n  .*b/1\.png: .* \(No such file or dir"
    ) as caught:
        load_split(split, Decoding(8, 1), None, "train")
    assert caught.value.exit_code == Exit.DATA


def test_links_are_followed_once_and_loops_end(tmp_path):
    elsewhere = pictures(tmp_path / "elsewhere", "1.png", "2.png")
    root = pictures(tmp_path / "root", "a/1.png")
    (root / "b").symlink_to(elsewhere)
    (root / "loop").symlink_to(root)
    (root / "a" / "up").symlink_to("..")
    (root / "self").symlink_to("self")
    source = ImageFolder(str(root))
    assert source.class_names == ["a", "b"]
    assert listed(source.splits()["train"], root) == [("a/1.png", 0), ("b/1.png", 1), ("b/2.png", 1)]


def test_digits_hold_out_their_last_fifth():
    splits = Digits().splits()
    assert {name: split.images.shape for name, split in splits.items()} == {
        "train": (1438, 8, 8),
        "val": (359, 8, 8),
    }
    assert splits["train"].images.max() == 255
    assert set(splits["train"].labels) == set(splits["val"].labels) == set(range(10))


# ------------------------------------------------------------------------------------------ the store


def a_split(root: Path, n: int = 4) -> Split:
    rng = np.random.default_rng(n)
    paths = [saved(Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)), root / f"{k}.png") for k in range(n)]
    return Split(paths, np.arange(n))


def test_the_cache_is_decoded_once_and_holds_the_same(tmp_path, monkeypatch):
    split, decoding = a_split(tmp_path / "in"), Decoding(8, 1)
    in_memory = load_split(split, decoding, None, "train")
    first = load_split(split, decoding, str(tmp_path / "cache"), "train")
    monkeypatch.setattr("diffusion_lit.data.store.decode_images", None)  # nothing is decoded again
    second = load_split(split, decoding, str(tmp_path / "cache"), "train")
    assert isinstance(second.images, np.memmap)
    for store in (first, second):
        np.testing.assert_array_equal(store.images, in_memory.images)
        assert store.fingerprint == in_memory.fingerprint
    assert len(os.listdir(tmp_path / "cache")) == 1


def test_what_changes_the_pixels_changes_the_file(tmp_path):
    split = a_split(tmp_path / "in")
    cache = tmp_path / "cache"
    load_split(split, Decoding(8, 1), str(cache), "train")
    load_split(split, Decoding(8, 1, resample="area"), str(cache), "train")
    load_split(split, Decoding(4, 1), str(cache), "train")
    load_split(split.select(np.array([0, 1, 2])), Decoding(8, 1), str(cache), "train")
    load_split(split, Decoding(8, 1), str(cache), "val")
    assert len(os.listdir(cache)) == 5
    saved(Image.fromarray(GREY), split.images[2])
    changed = load_split(split, Decoding(8, 1), str(cache), "train")
    assert len(os.listdir(cache)) == 6
    np.testing.assert_array_equal(changed.images[2, 0], GREY)


def test_half_a_cache_file_is_never_used(tmp_path):
    split, cache = a_split(tmp_path / "in"), tmp_path / "cache"
    load_split(split, Decoding(8, 1), str(cache), "train")
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    file.unlink()
    (cache / f".{file.name}.elsewhere-0123abcd.tmp").write_bytes(whole[:100])  # of a killed process
    load_split(split, Decoding(8, 1), str(cache), "train")
    assert file.read_bytes() == whole


def test_a_cache_of_broken_pictures_is_not_kept(tmp_path):
    split = a_split(tmp_path / "in")
    split.images[1].write_bytes(b"no picture")
    split.images[3].unlink()
    split.images[3].symlink_to("nowhere.png")
    with pytest.raises(UserError, match="2 of 4 images cannot be read"):
        load_split(split, Decoding(8, 1), str(tmp_path / "cache"), "train")
    assert os.listdir(tmp_path / "cache") == []


def test_a_cache_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="data.cache_dir=.* cannot be written") as caught:
        load_split(a_split(tmp_path / "in"), Decoding(8, 1), str(tmp_path / "file" / "cache"), "train")
    assert caught.value.exit_code == Exit.OUTPUT


def test_a_fingerprint_is_of_pixels_labels_and_their_order():
    images = RNG.integers(0, 256, (5000, 1, 2, 2), dtype=np.uint8)
    labels = RNG.integers(0, 10, 5000)
    fingerprint = ImageStore(images, labels).fingerprint
    assert fingerprint == ImageStore(images.copy(), labels.copy()).fingerprint
    pixel, label = images.copy(), labels.copy()
    pixel[4999, 0, 1, 1] ^= 1
    label[17] += 1
    others = [ImageStore(pixel, labels), ImageStore(images, label), ImageStore(images[::-1], labels[::-1].copy())]
    others += [ImageStore(images[:-1], labels[:-1]), ImageStore(images.reshape(5000, 1, 4, 1), labels)]
    assert len({fingerprint, *[store.fingerprint for store in others]}) == 6


@each(
    ("channels", "alpha", "render"),
    [(1, "keep", "none"), (3, "keep", "none"), (4, "keep", "none"), (4, "hard", "none"), (4, "zero", "skin")],
)
def test_an_array_of_the_right_size_is_decoded_as_pillow_does(channels, alpha, render):
    """Without Pillow, since nothing needs to be converted."""
    decoding = Decoding((6, 5), channels, alpha=alpha, render=render)
    shape = (6, 5) if channels == 1 else (6, 5, channels)
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        if render == "none":
            patch.setattr(Image, "fromarray", None)
        found = decoding(array)
    expected = decoding(Image.fromarray(array))
    assert found.shape == expected.shape == (channels, 6, 5)
    np.testing.assert_array_equal(found, expected)
