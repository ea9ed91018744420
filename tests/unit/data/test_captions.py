"""Captions: where they come from, and which one of several an image gets."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_lit.data.batches import Batches, ValidationBatches
from diffusion_lit.data.captions import (
    add_class_names,
    add_colors,
    caption_from_path,
    clean_caption,
    complete_captions,
    describe_captions,
    select_captions,
    split_words,
)
from diffusion_lit.data.datamodule import ImageDataModule
from diffusion_lit.data.decoding import Decoding
from diffusion_lit.data.sources.data_source import Split
from diffusion_lit.data.sources.folder import ImageFolder
from diffusion_lit.data.sources.huggingface import HuggingFace
from diffusion_lit.data.sources.path_table import PathTable
from diffusion_lit.data.sources.selection import SelectedSource
from diffusion_lit.data.store import ImageStore
from diffusion_lit.inspection.image_facts import ImageFacts, inspect_images, summarize_captions
from diffusion_lit.system.errors import DataError
from tests.cases import each

PATHS = {
    "golden_sword.png": "golden sword",
    "goldenSword02.png": "golden sword",
    "HTMLPage.png": "html page",
    "weapons/long-sword_3.png": "weapons long sword",
    "weapons/weapons_axe.png": "weapons axe",
    "monster/dragons/Fire Dragon (old).png": "monster dragons fire dragon old",
    "0001.png": "",
    "e\u0301toile_bleue.png": "\u00e9toile bleue",
    "\u7adc_red.png": "\u7adc red",
    "v1.2.potion.png": "potion",
    "potion_02a.png": "potion",
}


@each("name", PATHS, ids=str)
def test_file_names_become_words(name):
    assert caption_from_path(Path("root", name), Path("root")) == PATHS[name]


def test_captions_are_one_clean_line():
    assert clean_caption(" a\tred\n potion\x00 ") == "a red potion"
    assert clean_caption("e\u0301") == "\u00e9"
    assert [clean_caption(value) for value in (None, float("nan"), "", " ")] == [""] * 4
    assert clean_caption(7) == "7"


@pytest.fixture
def folder(tmp_path):
    """Six images, of which three have a text file, one of them with two captions."""
    for k in range(6):
        pixels = np.full((8, 8, 3), 40 * k, np.uint8)
        pixels[-1, -1] = 255  # a tile of one color would be empty
        Image.fromarray(pixels).save(tmp_path / f"redPotion_{k}.png")
    (tmp_path / "redPotion_0.txt").write_text("a red potion\n\n a small bottle \n", encoding="utf-8")
    (tmp_path / "redPotion_1.txt").write_text("\ufeffa bottle", encoding="utf-8")
    (tmp_path / "redPotion_2.txt").write_text("", encoding="utf-8")
    return tmp_path


def captions(folder: Path, kind: str):
    return ImageFolder(str(folder), captions=kind).splits()["train"].captions


def test_a_folder_has_captions_of_each_kind(folder):
    sidecars = [("a red potion", "a small bottle"), ("a bottle",), (), (), (), ()]
    assert captions(folder, "none") is None
    assert captions(folder, "filename") == [("red potion",)] * 6
    assert captions(folder, "sidecar") == captions(folder, "auto") == sidecars
    rows = [{"file_name": f"redPotion_{k}.png", "text": [None, "one", ["two", "due"]][k]} for k in range(3)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    columns = [(), ("one",), ("two", "due"), (), (), ()]
    assert captions(folder, "column") == captions(folder, "auto") == columns


def test_missing_and_broken_captions_are_refused_with_their_place(folder):
    for file in folder.glob("*.txt"):
        file.unlink()
    assert captions(folder, "auto") == [("red potion",)] * 6
    with pytest.raises(DataError, match="data.captions=sidecar: no image has a caption. It needs <image>.txt"):
        captions(folder, "sidecar")
    with pytest.raises(DataError, match=r"data.captions=column: .*metadata.jsonl"):
        captions(folder, "column")
    (folder / "redPotion_4.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(DataError, match=r"redPotion_4.txt: cannot be read as text in UTF-8"):
        captions(folder, "sidecar")
    for line in ("[1]", '{"file_name": 7}', "{"):
        (folder / "metadata.jsonl").write_text(f'{{"file_name": "redPotion_0.png"}}\n{line}\n', encoding="utf-8")
        with pytest.raises(DataError, match="metadata.jsonl, line 2: must be a JSON object with file_name"):
            captions(folder, "column")
    (folder / "metadata.jsonl").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(DataError, match="metadata.jsonl: cannot be read as text in UTF-8"):
        captions(folder, "auto")


def test_a_table_has_a_column_of_captions(folder):
    lines = ["path,caption", *[f'redPotion_{k}.png,"{text}"' for k, text in enumerate(["one", "", "a, b"])]]
    (folder / "images.csv").write_text("\n".join(lines), encoding="utf-8")
    table = str(folder / "images.csv")
    assert PathTable(table).splits()["train"].captions is None
    for column in ("auto", "caption"):
        assert PathTable(table, caption_column=column).splits()["train"].captions == [("one",), (), ("a, b",)]
    with pytest.raises(DataError, match="no column words. Set data.caption_column to one of path, caption"):
        PathTable(table, caption_column="words")


def test_captions_stay_with_their_images(folder):
    """Through an exclude list, the validation split, and tiles cut from sheets."""
    for k in range(6):
        (folder / f"redPotion_{k}.txt").write_text(f"number {k}", encoding="utf-8")
    (folder / "exclude.txt").write_text("redPotion_3.png\n", encoding="utf-8")
    source = SelectedSource(ImageFolder(str(folder), captions="sidecar"), str(folder / "exclude.txt"))
    data = ImageDataModule(source, 8, val_fraction=0.4)
    data.setup()
    assert len(data.train) + len(data.val) == 5
    for store in (data.train, data.val):
        values = store.images[np.arange(len(store))][:, 0, 0, 0]
        assert [text for (text,) in store.captions] == [f"number {value // 40}" for value in values]
    assert data.captions == sorted(text for (text,) in data.train.captions)
    sheet = ImageFolder(str(folder), captions="sidecar", tile=8).splits()["train"]
    assert sheet.captions == [(f"number {k}",) for k in sheet.images.places[:, 0]]


def store(texts) -> ImageStore:
    n = len(texts)
    return ImageStore(np.zeros((n, 3, 8, 8), np.uint8), np.zeros(n, np.int64), captions=texts)


TEXTS = [(), ("one",), ("a", "b"), *[(f"{k}x", f"{k}y", f"{k}z") for k in range(5)]]


def stream(start: int, count: int, **more) -> list[str]:
    batches = iter(Batches(store(TEXTS), 3, 4, lambda: start, **more))
    return [text for _ in range(count) for text in next(batches)["caption"]]


def test_the_caption_is_a_function_of_seed_and_position():
    whole = stream(0, 40)
    assert stream(10, 30) == whole[40:]  # a resumed run
    ranks = [stream(0, 20, rank=rank, world=2) for rank in (0, 1)]
    alternating = [ranks[k // 4 % 2][k // 8 * 4 + k % 4] for k in range(160)]
    assert alternating == whole
    assert stream(5, 20, accumulate=2) == whole[40:120]
    counts = {text: whole.count(text) for text in ("a", "b")}
    assert min(counts.values()) > 0
    assert sum(counts.values()) == 20
    assert whole.count("") == 20


def test_validation_takes_the_first_caption():
    batches = list(ValidationBatches(store(TEXTS), 16))
    rows = [row for batch in batches for row in batch["index"].tolist()]
    assert [text for batch in batches for text in batch["caption"]] == [(TEXTS[row] or ("",))[0] for row in rows]
    assert select_captions(TEXTS, [2, 0], 0, None) == ["a", ""]


def test_the_fingerprint_changes_with_a_caption_and_only_then():
    texts = [(), ("a",)]
    plain = ImageStore(store(texts).images, store(texts).labels)
    assert plain.fingerprint != store(texts).fingerprint
    prints = {store(texts).fingerprint for texts in ([("a",), ()], [(), ("a",)], [("a", "b"), ()], [("b",), ()])}
    assert len(prints) == 4
    assert "caption" not in next(iter(Batches(plain, 0, 4, lambda: 0)))


def test_the_facts_of_an_audit():
    facts = describe_captions([("a red potion", "red bottle"), ("a blue potion",), ()])
    assert facts == {
        "images_without": 1,
        "captions": 3,
        "different": 3,
        "words": 5,
        "words_per_caption": [2, 3],
        "frequent": ["a", "potion", "blue", "bottle", "red"],
        "rare": ["blue", "bottle", "red"],
    }


def test_colors_stand_in_front_of_captions_that_lack_them():
    captions = [("red dragon", "a dragon"), ("grey stone",), ("Dark-Red sword",), (), ()]
    colors = [["red", "gray"], ["gray"], ["red", "black"], ["blue"], []]
    added = [
        ("gray red dragon", "red gray a dragon"),
        ("grey stone",),
        ("black Dark-Red sword",),
        ("blue",),
        (),
    ]
    assert add_colors(captions, colors) == added
    assert add_colors(None, colors[-2:]) == [("blue",), ()]


def test_the_class_stands_in_front_of_captions_that_lack_a_word_of_it():
    names = ["Old_Dragon", "7", "\u00c9toile", "+"]
    captions = [("a dragon, old", "a dragon"), (), ("a star", "une \u00e9toile"), ("plus",), ("7", "17")]
    assert add_class_names(captions, [0, 1, 2, 3, 1], names) == [
        ("a dragon, old", "old dragon a dragon"),
        ("7",),
        ("\u00e9toile a star", "une \u00e9toile"),
        ("plus",),
        ("7", "7 17"),
    ]


def test_captions_alone_and_classes_alone_stay_as_they_are():
    labels, captions = [0, 1], [("a",), ()]
    assert complete_captions(captions, labels, []) is captions
    for empty in (None, [(), ()]):
        assert complete_captions(empty, labels, ["x", "y"]) is empty
    assert complete_captions(None, labels, [], [["red"], []]) == [("red",), ()]
    assert complete_captions(None, labels, ["x", "y"], [["red"], []]) == [("red x",), ("y",)]


CLASSES = ("fire dragon", "iron_sword")


def write_folder(folder: Path) -> ImageFolder:
    for image, name, text in make_images():
        path = folder / "images" / name / f"{text.split()[0]}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
        path.with_suffix(".txt").write_text(text, encoding="utf-8")
    return ImageFolder(str(folder / "images"), captions="sidecar")


def write_table(folder: Path) -> PathTable:
    lines = ["path,label,caption"]
    for image, name, text in make_images():
        image.save(folder / f"{text.split()[0]}.png")
        lines.append(f"{text.split()[0]}.png,{name},{text}")
    (folder / "images.csv").write_text("\n".join(lines), encoding="utf-8")
    return PathTable(str(folder / "images.csv"), caption_column="auto")


def write_hub_table(folder: Path) -> HuggingFace:
    datasets = pytest.importorskip("datasets")
    images, names, texts = map(list, zip(*make_images(), strict=True))
    features = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=CLASSES),
        "text": datasets.Value("string"),
    }
    table = {"image": images, "label": [CLASSES.index(name) for name in names], "text": texts}
    datasets.Dataset.from_dict(table, features=datasets.Features(features)).save_to_disk(folder / "saved")
    return HuggingFace(str(folder / "saved"), caption_column="auto")


def make_images():
    """Yield fifteen images with their class and caption. Every third caption has the words of the class."""
    for k in range(15):
        name = CLASSES[k % 5 == 0]
        pixels = np.full((8, 8, 3), 10 * k, np.uint8)
        yield Image.fromarray(pixels), name, f"{k} " + ("of iron: a sword and no fire dragon" if k % 3 == 0 else "old")


@each("write", [write_folder, write_table, write_hub_table], ids=lambda write: write.__name__)
def test_a_source_with_classes_and_captions_has_both(write, tmp_path):
    """In both splits and in an audit: each caption has the words of its class, and ends with its own text."""
    source = write(tmp_path)
    texts = {k: (name, text) for k, (_, name, text) in enumerate(make_images())}
    data = ImageDataModule(source, 8, val_fraction=0.6)
    data.setup()
    assert data.class_names == [*CLASSES]
    for store in (data.train, data.val):
        assert {*store.labels.tolist()} == {0, 1}
        for value, label, (caption,) in zip(
            np.array(store.images)[:, 0, 0, 0], store.labels, store.captions, strict=True
        ):
            name, text = texts[value // 10]
            assert CLASSES[label] == name
            words = split_words(name)
            assert caption == (text if set(words) <= set(split_words(text)) else " ".join([*words, text]))
        plain = ImageStore(np.array(store.images), store.labels)
        assert store.fingerprint != plain.fingerprint
    splits = source.splits()
    facts = list(inspect_images(splits, Decoding(8, 3)))
    own = [*data.train.captions, *data.val.captions]
    assert summarize_captions(splits, facts, source.class_names, False) == {"captions": describe_captions(own)}


def test_each_class_keeps_a_training_image_with_its_caption(tmp_path):
    for fraction in (0.05, 0.5, 0.9):
        data = ImageDataModule(write_folder(tmp_path), 8, val_fraction=fraction)
        data.setup()
        words = {word for text in data.captions for word in split_words(text)}
        assert {word for name in CLASSES for word in split_words(name)} <= words
        assert {*data.train.labels.tolist()} == {0, 1}


def test_file_names_already_have_the_class(tmp_path):
    """So with the words of folders a set has the same captions with and without its classes."""
    write_folder(tmp_path)
    captions = []
    for labels in ("auto", "none"):
        source = ImageFolder(str(tmp_path / "images"), labels, captions="filename")
        data = ImageDataModule(source, 8, val_fraction=0)
        data.setup()
        captions.append(data.train.captions)
    assert captions[0] == captions[1]


def test_caption_colors_are_those_of_the_images(tmp_path):
    """In both splits, with classes and a cache; without captions the colors are the caption."""
    colors = {"red": (220, 30, 30), "green": (30, 160, 30), "blue": (30, 30, 220)}
    for k in range(12):
        name = [*colors][k % 3]
        pixels = np.zeros((10, 10, 4), np.uint8)
        pixels[2:8, 2:8] = (*colors[name], 255)
        pixels[2:8, 2:8, 0] += np.uint8(k)  # no two images are the same
        Image.fromarray(pixels).save(tmp_path / f"sword_{k}.png")
    plain = ImageDataModule(ImageFolder(str(tmp_path), captions="filename"), 8, channels=4, val_fraction=0.3)
    plain.setup()
    for kind, end in (("filename", " sword"), ("none", "")):
        source = ImageFolder(str(tmp_path), captions=kind)
        settings = {"channels": 4, "val_fraction": 0.3, "caption_colors": True, "random_crop": 2}
        data = ImageDataModule(source, 8, **settings, cache_dir=str(tmp_path / ".cache"))
        data.setup()
        assert data.captions == [f"{name}{end}" for name in sorted(colors)]
        for store in (data.train, data.val):
            middle = store.images[np.arange(len(store))][:, :3, 4, 4].argmax(axis=1)
            assert [text for (text,) in store.captions] == [f"{[*colors][k]}{end}" for k in middle]
        assert data.train.fingerprint != plain.train.fingerprint
        splits = source.splits()
        facts = list(inspect_images(splits, Decoding(8, 4), has_colors=True))
        own = [*data.train.captions, *data.val.captions]
        assert summarize_captions(splits, facts, [], has_colors=True) == {"captions": describe_captions(own)}


def test_the_audit_counts_a_split_without_captions():
    splits = {
        "train": Split([None] * 2, np.zeros(2, np.int64), captions=[("a sword",), ()]),
        "val": Split([None] * 3, np.zeros(3, np.int64)),
    }
    facts = [ImageFacts(str(k), colors=("red",)) for k in range(5)]
    for has_colors, captions, without in ((False, 1, 4), (True, 5, 0)):
        found = summarize_captions(splits, facts, [], has_colors)["captions"]
        assert (found["captions"], found["images_without"]) == (captions, without)
    assert summarize_captions({"val": splits["val"]}, facts[2:], [], has_colors=False) == {}
