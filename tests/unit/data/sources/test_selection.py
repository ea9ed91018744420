"""Images that a list leaves out, and classes that keep the numbers of their run."""

import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_lit.config.compose import build_source, compose_configs
from diffusion_lit.data.sources.selection import format_entry, read_exclude_list
from diffusion_lit.runs.warm_start import resolve_training_config
from diffusion_lit.system.errors import Exit, UserError
from tests.cases import each
from tests.image_sets import data_error, make_data
from tests.trained import train

CAFE, CAFE_NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def draw(root: Path, names: list[str]) -> Path:
    for k, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 10 * k, np.uint8)).save(root / name)
    return root


def shades(data) -> list[int]:
    return (data.train.images[:, 0, 0, 0] // 10).tolist()


NAMES = ["a/0.png", "a/1.png", "a/# 2.png", "b/0.png", f"b/{CAFE}.png", "b/ 5.png"]
ENTRIES = {  # a list, what stays, what matches nothing
    "paths below the root": ("a/1.png\nb/0.png\n", [0, 2, 4, 5], []),
    "absolute paths": ("{root}/a/1.png", [0, 2, 3, 4, 5], []),
    "comments, empty lines, a byte order mark": ("\ufeff# broken\n\n  a/1.png  \r\n", [0, 2, 3, 4, 5], []),
    "names as JSON": ('"a/# 2.png"\n"b/ 5.png"', [0, 1, 3, 4], []),
    "other spellings": (f"./a/../a/1.png\nb/{CAFE_NFD}.png", [0, 2, 3, 5], []),
    "twice": ("a/1.png\na/1.png", [0, 2, 3, 4, 5], []),
    "what is not there": ("a/9.png\na/1.png\nrow 3 of train", [0, 2, 3, 4, 5], ["a/9.png", "row 3 of train"]),
    "nothing": ("# nothing\n", [0, 1, 2, 3, 4, 5], []),
}


@each(("name", "case"), ENTRIES.items(), ids=str)
def test_what_a_list_leaves_out(tmp_path, name, case):
    text, kept, unmatched = case
    root, path = draw(tmp_path / "in", NAMES), tmp_path / "exclude.txt"
    path.write_text(text.replace("{root}", str(root)), encoding="utf-8")
    data = make_data("data=image_folder", f"data.root={root}", f"data.exclude={path}", "data.val_fraction=0")
    order = sorted(range(6), key=lambda k: Path(NAMES[k]))
    assert shades(data) == [k for k in order if k in kept]
    notes = [f"left out by data.exclude={path}: {6 - len(kept)}"]
    notes += [f"{len(unmatched)} entries of {path} match no image: {', '.join(unmatched)}"] if unmatched else []
    assert data.source.notes == notes


def test_rows_of_arrays_are_left_out_and_counted_as_before(tmp_path):
    images = np.arange(12, dtype=np.uint8).repeat(64).reshape(12, 8, 8) * 10
    np.savez(tmp_path / "a.npz", x_train=images, y_train=np.arange(12) % 3, x_val=images[:4], y_val=np.arange(4) % 3)
    (tmp_path / "list").write_text("row 3 of train\n0\nrow 1 of val\n99\n")
    words = ["data=arrays", f"data.images={tmp_path / 'a.npz'}", f"data.exclude={tmp_path / 'list'}"]
    data = make_data(*words)
    assert shades(data) == [1, 2, 4, 5, 6, 7, 8, 9, 10, 11]
    assert (data.train.labels.tolist(), len(data.val)) == ([1, 2, 1, 2, 0, 1, 2, 0, 1, 2], 3)
    assert data.source.notes[1].endswith("match no image: 99")
    split = data.source.splits()["train"]
    assert format_entry(data.source, split, "train", 2) == "row 4 of train"


def test_tables_and_several_sources(tmp_path):
    root = draw(tmp_path / "in", ["0.png", "1.png", "2.png", "3.png"])
    (root / "a.csv").write_text("path\n0.png\n1.png\n0.png\n")
    np.save(tmp_path / "b.npy", np.full((3, 8, 8, 3), 90, np.uint8))
    (tmp_path / "list").write_text(f"{root}/0.png\nrow 4 of train\n")
    words = [f"data.exclude={tmp_path / 'list'}", "data.val_fraction=0"]
    data = make_data("data=concat", f"data.sources=[{root / 'a.csv'},{tmp_path / 'b.npy'}]", *words)
    assert shades(data) == [1, 9, 9]
    split = data.source.splits()["train"]  # what a second audit lists is read again
    entries = [format_entry(data.source, split, "train", k) for k in range(3)]
    assert [Path(entries[0]).name, *entries[1:]] == ["1.png", "row 3 of train", "row 5 of train"]


def test_lists_that_cannot_be_used(tmp_path):
    root = draw(tmp_path / "in", NAMES)
    for text, message in {
        None: "data.exclude=LIST: No such file",
        '"a': "data.exclude=LIST: a line that begins with a quote is no JSON string",
        "a/0.png\na/1.png\n" + '"a/# 2.png"': "data.exclude=LIST: no training images of a are left",
    }.items():
        path = tmp_path / "list"
        path.unlink(missing_ok=True)
        if text:
            path.write_text(text)
        error = data_error(make_data, "data=image_folder", f"data.root={root}", f"data.exclude={path}")
        assert message in error.replace(str(path), "LIST")


def test_every_name_comes_back_from_a_list(tmp_path):
    names = ["plain.png", " spaces .png", "#.png", '".png', "new\nline.png", f"{CAFE}.png", "\udce9.png"]
    source = build_source(
        {"_target_": "diffusion_lit.data.sources.folder.ImageFolder", "root": str(draw(tmp_path / "in", names))}
    )
    split = source.splits()["train"]
    lines = [format_entry(source, split, "train", k) for k in range(len(names))]
    (tmp_path / "list").write_text("\n".join(lines), encoding="utf-8")
    assert read_exclude_list(str(tmp_path / "list")) == [path.name for path in split.images]


# ------------------------------------------------------------------------------------------ classes of a run


def test_classes_keep_the_numbers_of_their_run(tmp_path):
    """A class that is gone leaves its number empty; a renamed or a new one is refused, whatever is accepted."""
    root = draw(tmp_path / "in", [f"{name}/{k}.png" for name in ("ants", "cats", "dogs") for k in range(4)])
    words = ["data=image_folder", f"data.root={root}", "data.image_size=8", "data.val_fraction=0.1"]
    train(tmp_path / "run", *words)

    def resumed() -> tuple[list[str], dict[str, int]]:
        resume = ["resume=" + str(tmp_path / "run"), "run_dir=" + str(tmp_path / "run"), "accept=[config,data]"]
        config, source = resolve_training_config(compose_configs("train", [*words, *resume])[0])
        split = source.splits()["train"]
        return config["data"]["class_names"], {
            path.parent.name: k for path, k in zip(split.images, split.labels, strict=True)
        }

    assert resumed() == (["ants", "cats", "dogs"], {"ants": 0, "cats": 1, "dogs": 2})
    (root / "cats").rename(root / "hounds")
    with pytest.raises(
        UserError, match="has the classes hounds, the run was trained with cats. Give every class"
    ) as caught:
        resumed()
    assert caught.value.exit_code == Exit.CHECKPOINT
    shutil.rmtree(root / "hounds")
    assert resumed() == (["ants", "cats", "dogs"], {"ants": 0, "dogs": 2})
    draw(root, [f"bees/{k}.png" for k in range(4)])
    (root / "bees").rename(root / "cats")
    draw(root, ["emus/0.png"])
    with pytest.raises(UserError, match="has the classes emus, the run was trained without these"):
        resumed()
    for name in ("cats", "dogs", "emus"):
        shutil.rmtree(root / name)
    with pytest.raises(UserError, match="has no classes, the run was trained with ants, cats, dogs"):
        resumed()
