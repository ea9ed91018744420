"""`audit`: exact numbers for a folder with one fault of each kind, and for every sort of source."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from diffusion_lit.config.compose import compose_configs, resolve_data
from diffusion_lit.config.expand import take_data_of_experiment
from diffusion_lit.data.decoding import Decoding
from diffusion_lit.inspection.image_facts import (
    find_duplicates,
    find_near_duplicates,
    find_period,
    inspect_image,
)
from tests.cases import each
from tests.runs import TINY, run

RNG = np.random.default_rng(0)


def noise(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, array: np.ndarray | Image.Image, **settings) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(path, **settings)


def audited(folder: Path, *words: object, code: int = 0) -> tuple[dict, str]:
    """audit.json and what was printed."""
    printed = run("audit", *map(str, words), "out=audit", cwd=folder, code=code)
    return json.loads((folder / "audit" / "audit.json").read_text()), printed


@pytest.fixture(scope="module")
def every_fault(tmp_path_factory) -> tuple[Path, dict, str]:
    """One picture with each peculiarity among sound ones, audited."""
    here = tmp_path_factory.mktemp("audit")
    cat, dog, val = here / "in" / "train" / "cat", here / "in" / "train" / "dog", here / "in" / "val" / "dog"
    sound = [noise(32, 32, 3) for _ in range(6)]
    for k, array in enumerate(sound):
        save(cat / f"{k}.png", array)
    save(dog / "small.png", noise(16, 16, 3))
    save(dog / "large_wide.png", noise(48, 64, 3))
    save(dog / "deep.png", noise(32, 32, 2).view(np.uint16)[..., 0])
    films = [Image.fromarray(noise(32, 32)) for _ in range(3)]
    save(dog / "film.gif", films[0], save_all=True, append_images=films[1:])
    save(dog / "twin.png", sound[0], compress_level=0)  # another file, the same pixels, another class
    save(dog / "nearly.png", np.clip(sound[1].astype(int) + 2, 0, 255).astype(np.uint8))
    save(dog / "clear.png", np.dstack([np.full((32, 32, 3), 200, np.uint8), np.zeros((32, 32), np.uint8)]))
    save(dog / "opaque.png", np.dstack([noise(32, 32, 3), np.full((32, 32), 255, np.uint8)]))
    save(dog / "holes.png", np.dstack([noise(32, 32, 3) | 1, noise(32, 32) // 128 * 255]))
    Path(os.fsdecode(os.fsencode(dog) + b"/caf\xe9.jpg")).write_text("<html>404</html>")  # a name that is no UTF-8
    (dog / "empty.png").write_bytes(b"")
    save(val / "leak.png", sound[2], compress_level=0)
    save(val / "near_leak.png", np.clip(sound[3].astype(int) + 2, 0, 255).astype(np.uint8))
    save(val / "other.png", noise(32, 32, 3))
    found, printed = audited(here, "data=image_folder", "data.root=in", code=3)
    return here, found, printed


def test_the_numbers_are_exact(every_fault):
    cat, dog, val = "in/train/cat", "in/train/dog", "in/val/dog"
    reasons = {"caf\\xe9.jpg": "a web page: download the image again", "empty.png": "the file is empty"}
    assert every_fault[1] == {
        "images": {"train": 17, "val": 3},
        "broken": [
            {"image": f"{dog}/{name}", "reason": f"cannot be read as an image ({reason})"}
            for name, reason in reasons.items()
        ],
        "modes": {"RGB": 13, "RGBA": 3, "I;16": 1, "P": 1},
        "sizes": {"32x32": 16, "64x48": 1, "16x16": 1},
        "more_than_8_bits": [f"{dog}/deep.png"],
        "value_range": [0, 65535],
        "clipped": {},
        "animated": [f"{dog}/film.gif"],
        "alpha": {"none": 15, "opaque": 1, "used": 1, "empty": 1},
        "fully_transparent": [f"{dog}/clear.png"],
        "soft_alpha": 0,
        "hidden_colors": 2,
        "gray": 3,  # deep, film, and nothing to see in clear
        "pixel_art": False,
        "tile": None,
        "resized": {"unchanged": 16, "enlarged": 1, "shrunk": 1, "not_square": 1},
        "classes": {"cat": {"train": 6, "val": 0}, "dog": {"train": 11, "val": 3}},
        "duplicates": [[f"{cat}/0.png", f"{dog}/twin.png"], [f"{cat}/2.png", f"{val}/leak.png"]],
        "contradictions": [
            {f"{cat}/0.png": "cat", f"{dog}/twin.png": "dog"},
            {f"{cat}/2.png": "cat", f"{val}/leak.png": "dog"},
        ],
        "near_duplicates": [[f"{cat}/1.png", f"{dog}/nearly.png"], [f"{cat}/3.png", f"{val}/near_leak.png"]],
        "leaks": [f"{val}/leak.png"],
        "near_leaks": [f"{val}/near_leak.png"],
        "repeats_every": None,
        "proposed": {},
        "command": "python -m diffusion_lit.train data=image_folder data.root=in",
        "training_would_fail": True,
        "left_out": {},
        "notes": [],
    }


def test_what_is_printed_says_the_same(every_fault):
    printed = every_fault[2]
    for text in (
        "images     20: 17 for training, 3 for validation",
        "in/train/dog/caf\\xe9.jpg: cannot be read as an image (a web page: download the image again)",
        "modes      RGB 13, RGBA 3, I;16 1, P 1",
        "deep       1 with more than 8 bits, scaled to 8: in/train/dog/deep.png",
        "values     0 is black, 65535 white (data.value_range=[0,65535])",
        "alpha      1 use it (hard edges), 1 are opaque, 1 fully transparent, 15 have none",
        "to 32x32, bicubic: 1 enlarged, 1 shrunk, 16 unchanged, 1 center-cropped",
        "network    32 is a multiple of 4: fits\n           3 levels from 32x32 to 8x8, attention at 8x8",
        "labels     2 groups of equal images carry different class labels: in/train/cat/0.png (cat), in/train/",
        "exclude    2 broken, 4 equal images of different classes: listed in audit/exclude.txt. Add data.exclude=",
        "equal      4 images in 2 groups: in/train/cat/0.png, in/train/dog/twin.png",
        "leaks      1 validation images are in training: in/val/dog/leak.png",
        "leaks      1 validation images have near duplicates in training: in/val/dog/near_leak.png",
        "training would fail: repair or leave out the broken images, then run",
    ):
        assert text in printed, text
    assert printed.splitlines()[-1] == "python -m diffusion_lit.train data=image_folder data.root=in"
    assert "Traceback" not in printed


def test_the_sheets_show_what_the_network_gets(every_fault):
    here, found, _ = every_fault
    sheet = np.asarray(Image.open(here / "audit" / "images.png"))
    doubles = np.asarray(Image.open(here / "audit" / "duplicates.png"))
    for path, within in ((Path("in/train/cat/0.png"), sheet), (Path("in/val/dog/near_leak.png"), doubles)):
        tile = Decoding(32, 3)(here / path).transpose(1, 2, 0).repeat(2, 0).repeat(2, 1)
        windows = np.lib.stride_tricks.sliding_window_view(within, (64, 64, 3))[:, :, 0]
        assert (windows == tile).all(axis=(2, 3, 4)).any(), path
    assert sorted(file.name for file in (here / "audit").iterdir()) == [
        "audit.json", "duplicates.png", "exclude.txt", "images.png",
    ]  # fmt: skip


@pytest.mark.parametrize(("sides", "size"), [((16, 48), 48), ((40, 72), 40)])
def test_of_two_sizes_one_is_proposed_that_there_is(tmp_path, sides, size):
    """The larger one of pixel art, the smaller one of photos: neither 32 nor 56."""
    for k in range(12):
        side = sides[k % 2]
        pixels = np.random.default_rng(k).integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
        save(tmp_path / "in" / f"{k}.png", pixels.repeat(8, 0).repeat(8, 1))
    found, _ = audited(tmp_path, "data=image_folder", "data.root=in", "data.channels=3", "near=0")
    assert found["proposed"]["data.image_size"] == size


def test_a_size_fits_the_patches_of_a_transformer(tmp_path):
    for k in range(6):
        save(tmp_path / "in" / f"{k}.png", noise(38, 38, 3))
    words = ["data=image_folder", "data.root=in", "model=dit", "model.patch_size=4"]
    found, printed = audited(tmp_path, *words)
    assert found["proposed"]["data.image_size"] == 36
    assert "network    36 is a multiple of 4: fits" in printed


def test_a_network_of_ones_own_need_not_know_its_size(tmp_path):
    net = "import torch\nclass Net(torch.nn.Conv2d):\n    def forward(self, x_t, t, y): return super().forward(x_t)\n"
    (tmp_path / "my_networks.py").write_text(net)
    (tmp_path / "own" / "model").mkdir(parents=True)
    keys = "in_channels: ${data.channels}\nout_channels: ${data.channels}\nkernel_size: 1\n"
    (tmp_path / "own" / "model" / "mine.yaml").write_text(f"_target_: my_networks.Net\n{keys}")
    printed = audited(tmp_path, "--config-dir", "own", "data=digits", "model=mine")[1]
    assert "multiple of" not in printed
    assert "classes    10" in printed


def test_sheets_of_tiles_are_recognized_and_the_command_line_cuts_them(tmp_path):
    for k in range(2):
        tiles = np.zeros((6, 8, 16, 16, 4), np.uint8)
        tiles[:, :, 2:14, 2:14, :3] = RNG.choice(np.array([20, 90, 250], np.uint8), (6, 8, 12, 12, 3))
        tiles[:, :, 2:14, 2:14, 3] = 255
        tiles[3:, 4:] = 0
        save(tmp_path / "in" / f"{k}.png", tiles.swapaxes(1, 2).reshape(96, 128, 4))
    found, printed = audited(tmp_path, "data=image_folder", "data.root=in")
    assert found["tile"] == 16
    assert "sheets     all images look like sheets of tiles: data.tile=16 cuts them" in printed
    note = "note       all images look like sheets of tiles: data.tile=16 cuts them"
    trained = [*TINY, "data=image_folder", "data.root=in", "max_steps=1", "sample_every=0", "data.val_fraction=0"]
    assert note in run("train", *trained, cwd=tmp_path)
    assert "data.tile" not in run("train", *trained, "data.tile=16", "data.image_size=16", cwd=tmp_path)
    words = shlex.split(found["command"])[3:]
    assert words[2:] == ["data.tile=16", "data.image_size=16", "data.channels=4", "data.alpha=hard"]
    again, printed = audited(tmp_path, *words)
    assert (sum(again["images"].values()), again["sizes"], again["proposed"]) == (72, {"16x16": 72}, {})
    assert "left out   empty tiles: 24 (in/0.png[3,4], in/0.png[3,5], in/0.png[3,6] and 21 more)" in printed


def test_what_can_be_trained_exits_with_0_and_its_command_line_trains(tmp_path):
    """Icons of 22 px with holes: nearest, alpha, a size that the network can halve; what was given is left alone."""
    for k in range(12):
        icon = np.zeros((22, 22, 4), np.uint8)
        icon[4 + k : 9 + k, 5:15] = (20 * k, 255 - 20 * k, 90, 255)
        icon[:4] = (255, 0, 0, 0)
        save(tmp_path / "in" / "ab"[k % 2] / f"{k}.png", icon)
    found, printed = audited(tmp_path, "data=image_folder", "data.root=in", "data.val_fraction=0", "near=0")
    words = ["data.image_size=24", "data.channels=4", "data.resample=nearest", "data.alpha=hard"]
    assert [f"{key}={value}" for key, value in found["proposed"].items()] == words
    assert found["pixel_art"]
    assert not found["training_would_fail"]
    assert shlex.split(found["command"])[3:] == ["data=image_folder", "data.root=in", "data.val_fraction=0", *words]
    assert printed.splitlines()[-1] == found["command"]
    compose_configs("train", shlex.split(found["command"])[3:])  # the check lets it pass
    again, _ = audited(tmp_path, *shlex.split(found["command"])[3:])
    assert again["proposed"] == {}
    found, _ = audited(tmp_path, "data=image_folder", "data.root=in", "data.image_size=16", "data.channels=3")
    assert found["proposed"] == {"data.resample": "nearest"}


@pytest.mark.parametrize("sound", [0, 1])
def test_hardly_any_picture(tmp_path, sound):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "bad.png").write_bytes(b"no picture")
    for k in range(sound):
        save(tmp_path / "in" / f"{k}.png", noise(16, 16, 3))
    found, printed = audited(tmp_path, "data=image_folder", "data.root=in", code=3)
    assert (len(found["broken"]), found["duplicates"], found["near_duplicates"]) == (1, [], [])
    assert "bad.png: cannot be read" in printed
    assert "Traceback" not in printed
    assert (tmp_path / "audit" / "images.png").exists() == bool(sound)


def test_arrays_that_repeat_leak_nothing_into_validation(tmp_path):
    np.save(tmp_path / "a.npy", np.tile(noise(30, 16, 16, 3), (4, 1, 1, 1)))
    found, printed = audited(tmp_path, "data=arrays", "data.images=a.npy", "data.val_fraction=0.2")
    assert found["repeats_every"] == 30
    assert len(found["duplicates"]) == 30
    assert found["leaks"] == []  # equal images have one hash
    assert found["proposed"] == {"data.image_size": 16}
    assert found["images"]["val"] % 4 == 0 < found["images"]["val"]


def test_other_sources(tmp_path):
    found, _ = audited(tmp_path, "data=digits")
    assert found["images"] == {"train": 1438, "val": 359}
    assert (found["modes"], found["proposed"], found["duplicates"]) == ({"L": 1797}, {}, [])
    table = {"image": [Image.fromarray(noise(8, 8)) for _ in range(9)], "label": [0, 1, 2] * 3}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list("abc"))})
    datasets.Dataset.from_dict(table, features=features).to_parquet(tmp_path / "a.parquet")
    found, _ = audited(tmp_path, "data=huggingface", "data.path=a.parquet", "data.val_fraction=0")
    assert found["classes"] == {name: {"train": 3, "val": 0} for name in "abc"}
    assert found["proposed"] == {"data.image_size": 8, "data.channels": 1}


@each(
    ("words", "code", "message"),
    [
        (["data=image_folder", "data.root=nowhere"], 3, "error: data.root=nowhere: folder not found"),
        (["data=digits", "data.image_size=30"], 2, "must be a multiple of 4"),
        (
            ["data=huggingface", "data.path=x", "data.streaming=true"],
            2,
            "data.streaming=true: an audit reads images more",
        ),
        (
            ["data=digits", "out=/dev/null/x"],
            5,
            "error: out=/dev/null/x cannot be made: not a folder. Choose a new one",
        ),
        (["data=digits", "seed=1"], 2, "seed: no such key"),
    ],
)
def test_mistakes_are_told(tmp_path, words, code, message):
    printed = run("audit", *words, cwd=tmp_path, code=code)
    assert message in printed
    assert "Traceback" not in printed
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------ its parts


@pytest.mark.parametrize("distance", [0.5, 3, 40, 75])
def test_near_groups_are_those_of_every_pair_compared(distance):
    base = RNG.integers(40, 200, (60, 256))
    close = base[:30] + RNG.integers(-1, 2, (30, 256)) * RNG.integers(0, 4, (30, 1))
    thumbs = np.concatenate([base, close, (base[:1] + base[1:2]) // 2]).astype(np.uint8)
    difference = (thumbs[:, None].astype(float) - thumbs[None]) ** 2
    near = np.sqrt(difference.mean(axis=2)) <= distance
    reached = np.linalg.matrix_power(near.astype(float), 64) > 0  # in steps
    groups = {tuple(np.flatnonzero(row).tolist()) for row in reached}
    assert find_near_duplicates(thumbs, distance) == sorted(list(group) for group in groups if len(group) > 1)


def test_equal_groups_and_repetitions():
    assert find_duplicates([b"a", b"b", b"a", b"", b"", b"c", b"b", b"a"]) == [[0, 2, 7], [1, 6]]
    assert find_period([b"a", b"b", b"c"] * 4) == 3
    assert find_period([b"a", b"b", b"c"] * 4 + [b"a"]) == 3
    assert find_period([b"a", b"b", b"c", b"d"]) is None
    assert find_period([b"a", b"b", b"a", b"c"]) is None
    assert find_period([]) is None


def test_colours_of_16_bits_are_seen_although_pillow_hides_them(tmp_path):
    from tests.images import png16

    for channels in (3, 4):
        (tmp_path / "a.png").write_bytes(png16(channels))
        assert inspect_image(tmp_path / "a.png", "a", Decoding(8, 4, value_range=(0, 65535))).is_deep
    save(tmp_path / "a.png", noise(16, 16, 3))
    assert not inspect_image(tmp_path / "a.png", "a", Decoding(8, 4, value_range=(0, 65535))).is_deep


def test_near_duplicates_of_real_pictures(shared_data, tmp_path):
    """Pictures packed again as JPEG are found, other ones are not taken for them."""
    with np.load(shared_data / "sprites_standin_16x16.npz") as file:
        pictures = file["sprites"][:300]
    for k, picture in enumerate(pictures):
        save(tmp_path / "in" / f"{k:03d}.png", picture)
        if k % 10 == 0:
            Image.fromarray(picture).resize((64, 64), 0).save(tmp_path / "in" / f"{k:03d}.webp", quality=90)
    found, _ = audited(tmp_path, "data=image_folder", "data.root=in", "data.image_size=16", "data.resample=area")
    pairs = [set(group) for group in found["near_duplicates"]]
    expected = [{f"in/{k:03d}.png", f"in/{k:03d}.webp"} for k in range(0, 300, 10)]
    assert sum(pair in pairs for pair in expected) >= 28
    assert len(pairs) <= 34


def test_help_needs_no_torch():
    code = (
        "import sys; sys.argv = ['audit', '--help']\nfrom diffusion_lit.audit import main; main()\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert "near: 3.0" in done.stdout


def test_the_defaults_are_those_of_train():
    """So that the line it prints means what it looked at."""
    for words in (["data=image_folder", "data.root=x"], ["data=digits"]):
        (ours,), (theirs,) = compose_configs("audit", words), compose_configs("train", ["experiment=none", *words])
        assert (ours.data, ours.model) == (theirs.data, theirs.model)
    assert resolve_data(compose_configs("audit", ["data=digits"])[0])[0]["data"]["num_classes"] == 10


def test_an_experiment_brings_its_data_and_network(tmp_path):
    """And the line to train keeps the experiment; what audit has no use for is left out."""
    for words in (["experiment=fer2013_cond", "data.root=x"], ["experiment=pixel_icons", "data.root=x", "model=unet"]):
        ours = compose_configs("audit", take_data_of_experiment([*words, "max_steps=3", "out=x"], None, ["out"]))[0]
        (theirs,) = compose_configs("train", words)
        assert (ours.data, ours.model, ours.out) == (theirs.data, theirs.model, "x")
    for k in range(4):
        save(tmp_path / "in" / f"{k}.png", noise(64, 64, 4))
    words = ["experiment=minecraft_skins", "data.root=in", "name=mine", "max_steps=3"]
    found, _ = audited(tmp_path, *words, "near=0")
    assert shlex.split(found["command"])[3:7] == words
    assert "data.image_size" not in found["proposed"]


def test_an_experiment_of_ones_own_folder_is_audited_and_the_line_to_train_names_the_folder(tmp_path):
    """Also with transforms, which are mappings."""
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    transform = "{_target_: torchvision.transforms.v2.ColorJitter, brightness: 0.2}"
    (tmp_path / "mine" / "experiment" / "blue.yaml").write_text(
        "# @package _global_\ndefaults: [override /data: image_folder, override /model: unet_small]\n"
        f"name: blue\ndata: {{image_size: 32, transforms: [{transform}]}}\n"
    )
    for k in range(4):
        save(tmp_path / "in" / f"{k}.png", noise(32, 32, 3))
    found, printed = audited(tmp_path, "--config-dir", "mine", "experiment=blue", "data.root=in", "near=0")
    assert shlex.split(found["command"])[3:7] == ["--config-dir", "mine", "experiment=blue", "data.root=in"]
    assert printed.splitlines()[-1] == found["command"]


def test_a_size_is_proposed_with_its_reason_and_advice_for_large_images(tmp_path):
    """Photos start small and the reason is given; what is unwise at the size of the command line is said."""
    for k in range(6):
        photo = Image.fromarray(noise(9, 9, 3)).resize((227, 230), Image.Resampling.BICUBIC)
        (tmp_path / "in").mkdir(exist_ok=True)
        photo.save(tmp_path / "in" / f"{k}.png")
    start = ["data=image_folder", "data.root=in", "near=0"]
    found, printed = audited(tmp_path, *start)
    assert found["proposed"]["data.image_size"] == 64
    assert "proposed   data.image_size=64, though the middle image is 227 px: a step at 227 px costs 13" in printed
    assert "4 levels from 64x64 to 8x8" in printed  # of the proposed size
    deep = ["model.block_out_channels=[32,64,64]", "model.attention_levels=[2]"]
    _, printed = audited(tmp_path, *start, "data.image_size=256", *deep)
    assert "attention at 64x64 compares 4,096 positions" in printed
    assert "images are few for 256x256" in printed
    assert "middle image" not in printed


def test_sheets_name_files_and_say_what_they_leave_out(tmp_path, monkeypatch):
    from diffusion_lit.data.sources.data_source import Split
    from diffusion_lit.inspection.contact_sheets import contact_sheet, duplicate_sheet
    from diffusion_lit.sampling import previews

    paths, drawn, draw_grid = [tmp_path / f"{k}.png" for k in range(6)], [], previews.draw_grid
    for k, path in enumerate(paths):
        save(path, np.full((8, 8, 3), k // 3, np.uint8))
    facts = [inspect_image(path, str(path), Decoding(8, 3)) for path in paths]
    groups = [[str(path) for path in paths[:3]], [str(path) for path in paths[3:5]]]
    monkeypatch.setattr(previews, "draw_grid", lambda *args: drawn.append(args[2:]) or draw_grid(*args))
    findings = {"duplicates": groups, "near_duplicates": []}
    splits = {"train": Split(paths, np.zeros(6, np.int64))}
    assert duplicate_sheet(splits, facts, findings, Decoding(8, 3)) is not None
    assert drawn[0] == (["equal 1: 0.png, 1.png and 1 more", "equal 2: 3.png, 4.png"], "")
    duplicate_sheet(splits, facts, {"duplicates": groups[1:] * 18, "near_duplicates": groups}, Decoding(8, 3))
    names, title = drawn[1]
    assert [sum(name.startswith(kind) for name in names) for kind in ("equal", "near")] == [12, 2]
    assert title == "and 6 more equal groups in audit.json"
    names = [f"class {k}" for k in range(37)]
    contact_sheet({"train": Split(paths * 7, np.arange(42) % 37)}, range(42), np.arange(42) % 37, Decoding(8, 3), names)
    assert (len(drawn[2][0]), drawn[2][1]) == (24, "24 of 37 classes")
