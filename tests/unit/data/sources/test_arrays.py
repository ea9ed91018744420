"""Pictures in arrays and in tables of paths, and several sources together: what comes out, and what is told."""

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from diffusion_lit.config.compose import compose_configs, resolve_data
from diffusion_lit.data.batches import Batches, draw_crop_offsets, random_crops
from diffusion_lit.data.datamodule import ImageDataModule
from tests.cases import each
from tests.image_sets import data_error, make_data
from tests.trained import train

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
CLASS = np.arange(40) % 3


def told(*words: object) -> str:
    return data_error(make_data, *words)


def npy(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


def npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez_compressed(path, **arrays)
    return path


def folder(root: Path, **classes: np.ndarray) -> Path:
    for name, images in classes.items():
        (root / name).mkdir(parents=True)
        for k, image in enumerate(images):
            Image.fromarray(image).save(root / name / f"{k:02d}.png")
    return root


def as_pictures(data: ImageDataModule) -> np.ndarray:
    return np.asarray(data.train.images).transpose(0, 2, 3, 1)


# ------------------------------------------------------------------------------------------ arrays


LABELS = {
    "one-hot float64": np.eye(3)[CLASS],
    "one-hot bool": np.eye(3, dtype=bool)[CLASS],
    "integers": CLASS.astype(np.uint8),
    "a column": CLASS[:, None],
    "whole floats": CLASS.astype(np.float32),
}


@each("kind", LABELS)
def test_labels_of_every_kind_are_the_same(kind, tmp_path):
    images, labels = npy(tmp_path / "a.npy", RGB), npy(tmp_path / "b.npy", LABELS[kind])
    for words in (
        [f"data.images={images}", f"data.labels={labels}"],
        [f"data.images={npz(tmp_path / 'c.npz', sprites=RGB, y=LABELS[kind])}"],
        [f"data.images={npz(tmp_path / 'd.npz', odd=RGB, z=LABELS[kind])}", "data.image_array=odd", "data.labels=z"],
    ):
        data = make_data("data=arrays", *words, "data.val_fraction=0")
        np.testing.assert_array_equal(as_pictures(data), RGB)
        np.testing.assert_array_equal(data.train.labels, CLASS)
        assert data.train.labels.dtype == np.int64
        assert data.source.class_names == ["0", "1", "2"]


def test_names_of_classes(tmp_path):
    path = npz(tmp_path / "a.npz", images=RGB, labels=CLASS, classes=np.array(["a", "b", "c"]))
    assert make_data("data=arrays", f"data.images={path}").source.class_names == ["a", "b", "c"]
    named = make_data("data=arrays", f"data.images={path}", "data.classes=[x,y,z,none_of_it]")
    assert named.source.class_names == ["x", "y", "z", "none_of_it"]
    text = npz(tmp_path / "b.npz", images=RGB, labels=np.array(["hero", "food", "spell"])[CLASS])
    data = make_data("data=arrays", f"data.images={text}", "data.val_fraction=0")
    assert data.source.class_names == ["food", "hero", "spell"]
    np.testing.assert_array_equal(data.train.labels, np.array([1, 0, 2])[CLASS])
    apart = npz(tmp_path / "c.npz", images=RGB, labels=np.array([5, 7, 9])[CLASS])
    data = make_data("data=arrays", f"data.images={apart}", "data.val_fraction=0")
    assert (data.source.class_names, data.train.labels.max()) == (["5", "7", "9"], 2)
    data = make_data("data=arrays", f"data.images={apart}", "data.labels=none")
    assert (data.source.class_names, data.train.labels.max()) == ([], 0)


@pytest.mark.parametrize("test", ["val", "test"])
def test_an_npz_that_holds_out_itself(tmp_path, test):
    arrays = {"x_train": RGB, "y_train": CLASS, f"x_{test}": RGB[:6] ^ 1, f"y_{test}": CLASS[:6]}
    data = make_data("data=arrays", f"data.images={npz(tmp_path / 'a.npz', **arrays)}")
    np.testing.assert_array_equal(as_pictures(data), RGB)
    np.testing.assert_array_equal(data.val.images.transpose(0, 2, 3, 1), RGB[:6] ^ 1)
    np.testing.assert_array_equal(data.val.labels, CLASS[:6])


@each("channels", [(), (1,), (2,), (3,), (4,)], ids=str)
def test_grey_and_alpha(tmp_path, channels):
    images = RNG.integers(0, 256, (5, 8, 8, *channels), dtype=np.uint8)
    data = make_data(
        "data=arrays", f"data.images={npy(tmp_path / 'a.npy', images)}", "data.channels=4", "data.val_fraction=0"
    )
    full = images.reshape(5, 8, 8, -1)
    alpha = full[..., -1:] if full.shape[3] in (2, 4) else np.full_like(full[..., :1], 255)
    colour = full[..., :3] if full.shape[3] > 2 else full[..., :1].repeat(3, 3)
    np.testing.assert_array_equal(as_pictures(data), np.concatenate([colour, alpha], 3))


def test_an_npy_is_read_row_by_row(tmp_path):
    path = npy(tmp_path / "a.npy", np.zeros((200, 64, 64, 3), np.uint8))
    _, source = resolve_data(compose_configs("train", ["experiment=none", "data=arrays", f"data.images={path}"])[0])
    images = source.splits()["train"].images
    assert isinstance(images.array, np.memmap)
    assert images[3].shape == (64, 64, 3)
    assert np.shares_memory(images[3], images.array)


@pytest.mark.parametrize("fraction", [0.05, 0.3, 0.9])
def test_what_repeats_is_never_trained_on_and_held_out(tmp_path, fraction):
    """The sprites of DeepLearning.AI come again every 1,788 rows; here 20 pictures every 20."""
    path, labels = (
        npy(tmp_path / "a.npy", np.tile(RGB[:20], (5, 1, 1, 1))),
        npy(tmp_path / "b.npy", np.arange(100) % 5),
    )
    words = ["data=arrays", f"data.images={path}", f"data.labels={labels}", f"data.val_fraction={fraction}"]
    data = make_data(*words, "data.split_modulo=20")
    trained, held_out = ({image.tobytes() for image in store.images} for store in (data.train, data.val))
    assert not trained & held_out
    assert len(trained | held_out) == 20
    assert len(data.val) % 5 == 0


def test_the_cache_follows_the_array(tmp_path):
    words = ["data=arrays", f"data.images={npy(tmp_path / 'a.npy', RGB)}", f"data.cache_dir={tmp_path / 'cache'}"]
    first = make_data(*words).train.fingerprint
    assert make_data(*words).train.fingerprint == first
    assert len(list((tmp_path / "cache").iterdir())) == 1
    npy(tmp_path / "a.npy", RGB[:39])
    assert make_data(*words).train.fingerprint != first
    assert len(list((tmp_path / "cache").iterdir())) == 2


@each(
    ("arrays", "words", "message"),
    [
        (
            {"images": RGB * 1j},
            [],
            "a.npz, images: type complex128. Save images as uint8",
        ),
        (
            {"images": RGB.transpose(0, 3, 1, 2)},
            [],
            r"shape (40, 3, 8, 8). Images are (N, H, W) or (N, H, W, C). np.move",
        ),
        ({"images": RGB[0, 0]}, [], "shape (8, 3). Images are (N, H, W)"),
        ({"images": RGB[:0]}, [], "shape (0, 8, 8, 3)"),
        (
            {"pics": RGB, "more": RGB},
            [],
            "no array of a usual name. Set data.image_array to one of pics, more.",
        ),
        ({"images": RGB}, ["data.image_array=pics"], "no array pics. Set data.image_array to one of images."),
        (
            {"images": RGB, "y": CLASS[:9]},
            [],
            "a.npz, y: labels of shape (9,). For 40 images use (40,) or one-hot (40, K).",
        ),
        ({"images": RGB, "y": np.ones((40, 2))}, [], "a.npz, y: 40 labels are not one-hot, such as row 0: [1. 1.]"),
        (
            {"images": RGB, "y": CLASS + 0.5},
            [],
            "a.npz, y: 40 labels are not integers or names: row 0 (0.5), row 1 (1.5)",
        ),
        ({"images": RGB, "y": CLASS}, ["data.labels=z"], "data.labels=z: neither an .npy file nor an array of"),
        ({"images": RGB, "y": CLASS}, ["data.classes=[a,b]"], "3 classes, but 2 names: a, b"),
        (
            {"x_train": RGB, "y_train": CLASS % 2, "x_test": RGB, "y_test": CLASS},
            [],
            "of x_test that are not in training: [2]",
        ),
    ],
)
def test_arrays_that_are_none(tmp_path, arrays, words, message):
    assert message in told("data=arrays", f"data.images={npz(tmp_path / 'a.npz', **arrays)}", *words)


def test_damaged_arrays_are_named(tmp_path):
    whole = npy(tmp_path / "a.npy", RGB).read_bytes()
    packed = npz(tmp_path / "a.npz", images=RGB).read_bytes()
    for name, data in {"cut.npy": whole[:3000], "no.npy": b"no array", "cut.npz": packed[:3000]}.items():
        (tmp_path / name).write_bytes(data)
        assert f"{tmp_path / name} is damaged or incomplete" in told("data=arrays", f"data.images={tmp_path / name}")
    np.save(tmp_path / "pickle.npy", np.array([{}], dtype=object), allow_pickle=True)
    assert "Python objects" in told("data=arrays", f"data.images={tmp_path / 'pickle.npy'}")
    assert "nowhere.npy: file not found" in told("data=arrays", "data.images=nowhere.npy")


def test_real_arrays(shared_data):
    data = make_data("data=arrays", f"data.images={shared_data / 'sprites_standin_16x16.npz'}", "data.image_size=16")
    assert data.source.class_names == ["human", "non-human", "food", "spell_or_item", "side-facing"]
    assert (np.bincount(data.train.labels) + np.bincount(data.val.labels)).tolist() == [160, 648, 120, 700, 160]
    words = ["data.image_size=28", "data.channels=1"]
    data = make_data("data=arrays", f"data.images={shared_data / 'mnist_12k.npz'}", *words)
    assert (len(data.train), len(data.val)) == (10000, 2000)


# ------------------------------------------------------------------------------------------ tables of paths


def table(path: Path, columns: dict[str, list]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
        return path
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writerows([list(columns), *zip(*columns.values(), strict=True)])
    return path


@pytest.fixture
def pictures(tmp_path) -> list[str]:
    folder(tmp_path, **{"in, here": RGB[:12]})
    return [f"in, here/{k:02d}.png" for k in range(12)]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
def test_a_table_of_paths(tmp_path, pictures, suffix):
    columns = {"id": list(range(12)), "image_path": pictures, "label": [10, 9, 8] * 4}
    path = table(tmp_path / f"a.{suffix}", columns)
    data = make_data("data=table", f"data.path={path}", "data.val_fraction=0")
    np.testing.assert_array_equal(as_pictures(data), RGB[:12])
    assert data.source.class_names == ["8", "9", "10"]  # as numbers
    assert data.train.labels.tolist() == [2, 1, 0] * 4
    columns |= {"label": list("xyz") * 4, "subset": ["train", "test", "Validation", "train"] * 3}
    data = make_data("data=table", f"data.path={table(path, columns)}")
    np.testing.assert_array_equal(as_pictures(data), RGB[[0, 3, 4, 7, 8, 11]])
    np.testing.assert_array_equal(data.val.images.transpose(0, 2, 3, 1), RGB[[2, 6, 10]])
    assert (data.source.class_names, data.train.labels.tolist()) == (["x", "y", "z"], [0, 0, 1, 1, 2, 2])
    words = ["data.path_column=image_path", "data.label_column=id", "data.split_column=none", "data.val_fraction=0.25"]
    data = make_data("data=table", f"data.path={path}", *words)
    assert (len(data.train), data.val, len(data.source.class_names)) == (
        12,
        None,
        12,
    )  # each class keeps its only image
    assert make_data("data=table", f"data.path={path}", "data.label_column=none").source.class_names == []


def test_paths_from_another_folder(tmp_path, pictures):
    (tmp_path / "lists").mkdir()
    path = table(tmp_path / "lists" / "a.csv", {"path": pictures})
    assert f"12 of 12 images not found, such as {path.parent / pictures[0]}. Set data.root=" in told(
        "data=table", f"data.path={path}"
    )
    data = make_data("data=table", f"data.path={path}", f"data.root={tmp_path}", "data.val_fraction=0")
    np.testing.assert_array_equal(as_pictures(data), RGB[:12])
    absolute = table(tmp_path / "lists" / "b.csv", {"path": [tmp_path / name for name in pictures]})
    np.testing.assert_array_equal(
        as_pictures(make_data("data=table", f"data.path={absolute}", "data.val_fraction=0")), RGB[:12]
    )


@each(
    ("columns", "words", "message"),
    [
        ({"name": ["a"], "kind": ["b"]}, [], "no column of paths. Set data.path_column to one of name, kind."),
        ({"path": ["a"]}, ["data.path_column=file"], "no column file. Set data.path_column to one of path."),
        ({"path": ["a"]}, ["data.label_column=kind"], "no column kind. Set data.label_column to one of path."),
        ({"path": [""], "label": ["x"]}, [], "a.csv, line 2: no path"),
        ({"path": []}, [], "has no rows"),
        ({"path": ["a", "b"], "label": ["x", ""]}, [], "a.csv, line 3: no label (1 of 2)"),
    ],
)
def test_tables_that_are_none(tmp_path, columns, words, message):
    assert message in told("data=table", f"data.path={table(tmp_path / 'a.csv', columns)}", *words)


def test_other_faults_of_tables(tmp_path, pictures):
    assert "nowhere.csv: file not found" in told("data=table", "data.path=nowhere.csv")
    for name, data, message in (
        ("a.parquet", b"no", " is damaged"),
        ("a.csv", b"path,label\na.png\n", ", line 2: 1 values for 2 columns (path, label)."),
        ("b.csv", b"\xff\xfe\x00", ", line 1: not text in utf-16 (truncated data)"),
        ("c.csv", b"", " is empty"),
    ):
        (tmp_path / name).write_bytes(data)
        assert f"{tmp_path / name}{message}" in told("data=table", f"data.path={tmp_path / name}")
    for words, message in ((["train", "extra"], "unknown splits extra. Use train"), (["val"] * 2, "no split train")):
        path = table(tmp_path / "d.csv", {"path": pictures[:2], "split": words})
        assert message in told("data=table", f"data.path={path}")


# ------------------------------------------------------------------------------------------ several together


def test_several_sources_are_one(tmp_path):
    first = folder(tmp_path / "first", cat=RGB[:3], dog=RGB[3:5])
    images = npz(tmp_path / "a.npz", images=RGB[5:8], labels=np.array(["ant", "dog", "ant"]))
    folder(tmp_path / "loose", pictures=RGB[8:10])
    listed = table(
        tmp_path / "a.csv", {"path": ["loose/pictures/00.png", "loose/pictures/01.png"], "label": ["cat", "yak"]}
    )
    data = make_data("data=concat", f"data.sources=[{first},{images},{listed}]", "data.val_fraction=0")
    assert data.source.class_names == ["ant", "cat", "dog", "yak"]
    np.testing.assert_array_equal(as_pictures(data), RGB[:10])
    assert data.train.labels.tolist() == [1, 1, 1, 2, 2, 0, 2, 0, 1, 3]
    parted = make_data("data=concat", f"data.sources=[{first},{images},{listed}]", "data.val_fraction=0.3")
    assert (len(parted.train), len(parted.val)) == (7, 3)
    found = {image.tobytes(): label for store in (parted.train, parted.val)
             for image, label in zip(store.images, store.labels, strict=True)}  # fmt: skip
    assert found == {image.tobytes(): label for image, label in zip(data.train.images, data.train.labels, strict=True)}
    data = make_data("data=concat", f"data.sources=[{first},{tmp_path / 'loose'}]", "data.labels=none")
    assert data.source.class_names == []
    assert "loose has no classes, but others have" in told(
        "data=concat", f"data.sources=[{first},{tmp_path / 'loose'}]"
    )
    assert "notes.txt is not a folder, an array" in told("data=concat", "data.sources=[notes.txt]")


def test_what_several_sources_hold_out_themselves(tmp_path):
    folder(tmp_path / "a" / "train", cat=RGB[:3], dog=RGB[3:5])
    folder(tmp_path / "a" / "test", dog=RGB[5:6])
    folder(tmp_path / "b", cat=RGB[6:8], eel=RGB[8:9])
    data = make_data("data=concat", f"data.sources=[{tmp_path / 'a'},{tmp_path / 'b'}]")
    np.testing.assert_array_equal(as_pictures(data), RGB[[0, 1, 2, 3, 4, 6, 7, 8]])
    assert (data.train.labels.tolist(), data.val.labels.tolist()) == ([0, 0, 0, 1, 1, 0, 0, 2], [1])


def test_the_cache_follows_several_sources(tmp_path):
    sources = [folder(tmp_path / "a", x=RGB[:4]), npy(tmp_path / "b.npy", RGB[4:8])]
    words = ["data=concat", f"data.sources=[{sources[0]},{sources[1]}]", "data.val_fraction=0"]
    words.append(f"data.cache_dir={tmp_path / 'cache'}")
    for _ in range(2):
        np.testing.assert_array_equal(as_pictures(make_data(*words)), RGB[:8])
    assert len(list((tmp_path / "cache").iterdir())) == 1
    Image.fromarray(RGB[20]).save(sources[0] / "x" / "02.png", compress_level=0)
    np.testing.assert_array_equal(as_pictures(make_data(*words)), RGB[[0, 1, 20, 3, 4, 5, 6, 7]])


# ------------------------------------------------------------------------------------------ random crops


def test_random_crops_are_windows_by_position(tmp_path):
    """Every window comes, and which one does not depend on where the batches begin or how large they are."""
    big = RNG.integers(0, 256, (3, 10, 10), dtype=np.uint8)
    words = ["data=arrays", f"data.images={npy(tmp_path / 'a.npy', big)}", "data.channels=1", "data.val_fraction=0"]
    data = make_data(*words, "data.random_crop=2")
    np.testing.assert_array_equal(data.train.images[:, 0], big)

    def batches(size: int, step: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        stream = iter(Batches(data.train, 5, size, step=lambda: step, image_size=8))
        found = [next(stream) for _ in range(count)]
        return torch.cat([b["image"] for b in found]), torch.cat([b["index"] for b in found])

    images, index = batches(8, 0, 30)
    assert images.shape == (240, 1, 8, 8)
    places = set()
    for image, k in zip(images.numpy()[:, 0], index.tolist(), strict=True):
        windows = {(y, x): big[k, y : y + 8, x : x + 8] for y in range(3) for x in range(3)}
        places |= {place for place, window in windows.items() if np.array_equal(window, image)}
    assert len(places) == 9
    assert torch.equal(batches(4, 10, 50)[0], images[40:])


def test_crops_are_functions_of_seed_and_position_alone():
    """Any part of the stream has the offsets of the whole; each offset is as likely as another."""
    whole = draw_crop_offsets(7, 0, 4000, 3)
    for start, count in [(0, 1), (5, 128), (127, 2), (128, 128), (1000, 3000), (3999, 1)]:
        np.testing.assert_array_equal(draw_crop_offsets(7, start, count, 3), whole[:, start : start + count])
    assert not np.array_equal(draw_crop_offsets(8, 0, 4000, 3), whole)
    counts = np.bincount(4 * whole[0] + whole[1], minlength=16)
    assert ((counts - 250) ** 2 / 250).sum() < 37.7  # chi-squared of 15 degrees of freedom, p = 0.001
    images = RNG.integers(0, 256, (300, 3, 9, 11), dtype=np.uint8)
    (y, x), crops = draw_crop_offsets(7, 50, 300, 3), random_crops(images, [6, 8], 7, 50)
    for k in range(300):
        np.testing.assert_array_equal(crops[k], images[k, :, y[k] : y[k] + 6, x[k] : x[k] + 8])


def test_random_crops_train_and_the_centre_is_held_out(tmp_path):
    big = RNG.integers(0, 256, (20, 12, 12, 3), dtype=np.uint8)
    words = [
        "data=arrays",
        f"data.images={npy(tmp_path / 'a.npy', big)}",
        "data.random_crop=4",
        "data.val_fraction=0.5",
    ]
    data = make_data(*words)
    assert data.train.images.shape == (20 - len(data.val), 3, 12, 12)
    centres = {image.tobytes() for image in np.ascontiguousarray(big.transpose(0, 3, 1, 2)[:, :, 2:10, 2:10])}
    assert {np.ascontiguousarray(image).tobytes() for image in data.val.images} <= centres
    trace = train(tmp_path / "run", "experiment=none", *words, "data.image_size=8", "max_steps=2")
    assert np.isfinite([float(row["train/loss"]) for row in trace]).all()
