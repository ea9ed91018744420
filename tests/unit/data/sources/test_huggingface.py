"""Hugging Face data sets: whatever they come as, the arrays are those of the same pictures in folders."""

import http.server
import json
import threading
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diffusion_lit.config.compose import compose_configs, resolve_data
from diffusion_lit.data.datamodule import ImageDataModule
from diffusion_lit.data.sources.hf_tables import shorten_error
from diffusion_lit.system.errors import Exit, UserError
from tests.cases import each
from tests.image_sets import (
    STREAMED,
    data_error,
    make_data,
    make_hub_data,
    make_shades,
    make_table,
    read_shades,
    write_table,
)
from tests.trained import train

SIZES = {"train": {"cat": 7, "dog": 5}, "test": {"cat": 3, "dog": 2}}
STREAM = ["data.streaming=true", "data.value_range=[0,65535]"]  # of one pass, in which no range can be found
NAMES = ["cat", "dog"]


@pytest.fixture(autouse=True)
def _cache_of_datasets(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Class folders of small pictures, each of another kind: what is read in a special way is read so everywhere."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    for split, classes in SIZES.items():
        for name, n in classes.items():
            (root / split / name).mkdir(parents=True)
            for k in range(n):
                noise = rng.integers(0, 256, (12, 8, 4), dtype=np.uint8)
                kinds = [Image.fromarray(noise), Image.fromarray(noise[..., :3]), Image.fromarray(noise[..., 0])]
                kinds += [Image.fromarray(noise[..., :2].copy().view(np.uint16)[..., 0]), kinds[1].quantize(7)]
                more = {"exif": exif} if k == 1 else {}
                kinds[k % 5].save(root / split / name / f"{k}.png", **more)
    return root


def rows(folder: Path, split: str) -> list[tuple[bytes, int]]:
    return [
        (path.read_bytes(), k) for k, name in enumerate(NAMES) for path in sorted((folder / split / name).iterdir())
    ]


def typed(folder: Path, split: str, image: str, label: str) -> datasets.Dataset:
    features = datasets.Features({label: datasets.ClassLabel(names=NAMES), image: datasets.Image()})
    table = {image: [{"bytes": data, "path": None} for data, _ in rows(folder, split)]}
    return datasets.Dataset.from_dict(table | {label: [k for _, k in rows(folder, split)]}, features=features)


def written_imagefolder(folder: Path, to: Path) -> None:
    to.rmdir()
    to.symlink_to(folder)


def written_typed_parquet(folder: Path, to: Path) -> None:
    for split in SIZES:
        typed(folder, split, "img", "label").to_parquet(to / f"{split}-00000-of-00001.parquet")


def written_plain_parquet(folder: Path, to: Path) -> None:
    """As any other program writes it: no types of Hugging Face, classes as words."""
    for split in SIZES:
        pictures, labels = zip(*rows(folder, split), strict=True)
        table = {"fine_label": [NAMES[k] for k in labels], "image": [{"bytes": data, "path": ""} for data in pictures]}
        pq.write_table(pa.table(table), to / f"{split}.parquet")


def written_binary_parquet(folder: Path, to: Path) -> None:
    """Beside the pictures other bytes, which are none."""
    for split in SIZES:
        pictures, labels = zip(*rows(folder, split), strict=True)
        table = {"id": [b"x"] * len(labels), "jpeg": list(pictures), "class": [NAMES[k] for k in labels]}
        pq.write_table(pa.table(table), to / f"{split}.parquet")


def written_save_to_disk(folder: Path, to: Path) -> None:
    datasets.DatasetDict({split: typed(folder, split, "image", "fine_label") for split in SIZES}).save_to_disk(to)


WRITERS = {name.removeprefix("written_"): writer for name, writer in globals().items() if name.startswith("written_")}


@pytest.fixture(scope="module")
def sets(folder, tmp_path_factory) -> dict[str, Path]:
    paths = {name: tmp_path_factory.mktemp(name) for name in WRITERS}
    for name, writer in WRITERS.items():
        writer(folder, paths[name])
    return paths


def assert_same(data: ImageDataModule, other: ImageDataModule) -> None:
    assert data.source.class_names == other.source.class_names
    assert (data.val is None) == (other.val is None)
    for store, expected in [(data.train, other.train)] + ([(data.val, other.val)] if data.val else []):
        np.testing.assert_array_equal(store.images, expected.images)
        np.testing.assert_array_equal(store.labels, expected.labels)
        assert store.labels.dtype == np.int64
        assert store.fingerprint == expected.fingerprint


@pytest.fixture(scope="module")
def oracle(folder) -> ImageDataModule:
    return make_data("data=image_folder", f"data.root={folder}")


# ------------------------------------------------------------------------------------------ the same arrays


@each("kind", WRITERS)
def test_every_kind_gives_the_arrays_labels_and_names_of_the_folder(kind, sets, oracle):
    assert (len(oracle.train), len(oracle.val), oracle.source.class_names) == (12, 5, NAMES)
    assert_same(make_hub_data(sets[kind]), oracle)


@pytest.mark.parametrize("channels", [1, 4])
def test_channels_and_background_are_those_of_our_decoding(channels, sets, folder):
    words = [f"data.channels={channels}", "data.background=[255,0,9]", "data.resample=area"]
    assert_same(
        make_hub_data(sets["typed_parquet"], *words),
        make_data("data=image_folder", f"data.root={folder}", *words),
    )


@each("kind", ["imagefolder", "typed_parquet", "save_to_disk"])
@each("cached", [False, True])
def test_a_stream_gives_the_same(kind, cached, sets, oracle, tmp_path):
    words = [*STREAM] + [f"data.cache_dir={tmp_path / 'cache'}"] * cached
    assert_same(make_hub_data(sets[kind], *words), oracle)


def test_without_labels_the_model_is_unconditional(sets, folder, tmp_path):
    loose = tmp_path / "loose.parquet"
    pq.write_table(pa.table({"image": [{"bytes": data, "path": None} for data, _ in rows(folder, "train")]}), loose)
    expected = make_data(
        "data=image_folder", f"data.root={folder / 'train'}", "data.labels=none", "data.val_fraction=0"
    )
    assert_same(make_hub_data(loose, "data.val_fraction=0"), expected)
    assert_same(make_hub_data(loose, "data.val_fraction=0", *STREAM), expected)
    data = make_hub_data(sets["typed_parquet"], "data.label_column=none")
    assert data.source.class_names == []
    np.testing.assert_array_equal(data.train.images, expected.train.images)
    assert not data.train.labels.any()


@each("kind", WRITERS)
def test_every_kind_trains(kind, sets, tmp_path):
    words = ["experiment=none", "data=huggingface", f"data.path={sets[kind]}"]
    trace = train(tmp_path / "run", *words, "data.image_size=8", "max_steps=2")
    assert np.isfinite([float(row["train/loss"]) for row in trace]).all()


def test_an_unlabelled_stream_trains(sets, tmp_path):
    words = ["experiment=none", "data=huggingface", f"data.path={sets['plain_parquet']}", *STREAM]
    trace = train(tmp_path / "run", *words, "data.label_column=none", "data.image_size=8", "max_steps=2")
    assert np.isfinite([float(row["train/loss"]) for row in trace]).all()


# ------------------------------------------------------------------------------------------ splits and rows


GREY = ["data.channels=1", "data.image_size=4"]


def test_which_split_is_held_out(tmp_path):
    tables = datasets.DatasetDict()
    for k, name in enumerate(["train", "test", "valid", "val", "validation"]):
        tables[name] = datasets.Dataset.from_dict({"image": make_shades(3, 10 * k)})
        tables.save_to_disk(tmp_path / name)
        data = make_hub_data(tmp_path / name, *GREY, "data.val_fraction=0")
        assert read_shades(data.train) == [0, 1, 2]
        assert (data.val and read_shades(data.val)) == ([10 * k, 10 * k + 1, 10 * k + 2] if k else None)


def test_a_split_of_ones_own(sets, tmp_path):
    data = make_hub_data(sets["typed_parquet"], "data.split='train[:50%]'", "data.val_fraction=0")
    assert (len(data.train), data.val) == (6, None)
    for streaming in ("true", "false"):
        data = make_hub_data(
            sets["save_to_disk"], "data.split=test", "data.val_fraction=0.4", f"data.streaming={streaming}"
        )
        assert len(data.train) + len(data.val) == 5
    only = write_table(tmp_path / "only", {"image": make_shades(3)}, "test")
    assert read_shades(make_hub_data(only, *GREY, "data.val_fraction=0").train) == [0, 1, 2]


@pytest.mark.parametrize("streaming", ["true", "false"])
def test_only_the_first_so_many(tmp_path, streaming):
    path = write_table(tmp_path / "set", {"image": make_shades(9)})
    write_table(path, {"image": make_shades(9, 100)}, "test")
    data = make_hub_data(path, *GREY, "data.max_images=4", f"data.streaming={streaming}")
    assert (read_shades(data.train), read_shades(data.val)) == ([0, 1, 2, 3], [100, 101, 102, 103])


# ------------------------------------------------------------------------------------------ streams


@pytest.fixture(scope="module")
def long(tmp_path_factory) -> Path:
    """More rows than are decoded at once, with classes."""
    path = tmp_path_factory.mktemp("long")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["even", "odd"])})
    pictures = [{"bytes": data, "path": None} for data in make_shades(700)]
    table = datasets.Dataset.from_dict({"image": pictures, "label": [k % 2 for k in range(700)]}, features=features)
    table.to_parquet(path / "train.parquet")
    return path


def test_a_long_stream_keeps_its_order_and_is_divided_without_a_copy(long, tmp_path):
    for words in ([], [f"data.cache_dir={tmp_path / 'cache'}"]):
        data = make_hub_data(long, *GREY, "data.streaming=true", "data.val_fraction=0.1", *words)
        rows = {name: store.images.rows for name, store in (("train", data.train), ("val", data.val))}
        assert sorted([*rows["train"], *rows["val"]]) == list(range(700))
        for name, store in (("train", data.train), ("val", data.val)):
            assert read_shades(store) == [k % 256 for k in rows[name]]
            assert store.labels.tolist() == [k % 2 for k in rows[name]]
        assert data.train.images.base is data.val.images.base
        assert isinstance(data.train.images.base, np.memmap) == bool(words)


def test_the_check_reads_nothing_of_a_stream(long, monkeypatch):
    monkeypatch.setattr("datasets.IterableDataset.__iter__", None)
    words = ["data=huggingface", f"data.path={long}", "data.streaming=true", "experiment=none"]
    config, source = resolve_data(compose_configs("train", words)[0])
    assert config["data"]["class_names"] == ["even", "odd"]
    assert source.splits()["train"].labels is None
    with pytest.raises(UserError, match="not iterable"):  # and then it would have
        make_hub_data(long, "data.streaming=true")


def test_a_finished_stream_is_never_reached_for_again(sets, tmp_path, monkeypatch):
    words = [sets["typed_parquet"], *STREAM, f"data.cache_dir={tmp_path / 'cache'}"]
    first = make_hub_data(*words)
    files = sorted((tmp_path / "cache").iterdir())
    assert [file.suffix for file in files] == [".json", ".npy", ".npy"]
    with monkeypatch.context() as patch:
        patch.setattr("diffusion_lit.data.sources.hf_tables.load_tables", None)
        assert_same(make_hub_data(*words), first)
        with pytest.raises(TypeError):
            make_hub_data(*words, "data.max_images=3")
        with pytest.raises(TypeError):
            make_hub_data(*words, "data.resample=area")
    assert sorted((tmp_path / "cache").iterdir()) == files


def test_half_a_stream_is_never_used(long, tmp_path):
    cache = tmp_path / "cache"
    words = [long, *GREY, "data.streaming=true", "data.val_fraction=0", f"data.cache_dir={cache}"]
    expected = read_shades(make_hub_data(*words).train)
    (images,) = cache.glob("train-*.npy")
    whole = images.read_bytes()
    images.unlink()  # of a process killed before the pictures had their name
    (cache / f".{images.name}.elsewhere-0123abcd.tmp").write_bytes(whole[:1000])
    assert read_shades(make_hub_data(*words).train) == expected
    assert images.read_bytes() == whole


def test_what_breaks_a_stream_is_named_and_leaves_nothing(tmp_path, monkeypatch):
    bad = make_shades(600)
    bad[517] = b"no picture"
    path, cache = write_table(tmp_path / "set", {"image": bad}), tmp_path / "cache"
    words = [path, *GREY, "data.streaming=true", f"data.cache_dir={cache}"]
    with pytest.raises(UserError, match=rf"row 517 of {path}, train: cannot be read as an image \(.+\)"):
        make_hub_data(*words)
    assert list(cache.iterdir()) == []
    assert len(make_hub_data(*words, "data.max_images=517", "data.val_fraction=0").train) == 517

    def cut_off(self):
        yield from ({"image": data} for data in make_shades(3))
        raise ConnectionError("peer is gone, token hf_abc")

    monkeypatch.setattr("datasets.IterableDataset.__iter__", cut_off)
    with pytest.raises(
        UserError, match=rf"{path}, train: broke off at row 3 \(peer is gone, token hf_\.\.\.\)"
    ) as caught:
        make_hub_data(*words, "data.max_images=9")
    assert caught.value.exit_code == Exit.DATA


def test_a_full_disk_is_not_taken_for_a_broken_stream(long, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("diffusion_lit.data.cache.CacheWriter.write", full)
    with pytest.raises(UserError, match=r"data\.cache_dir=.* cannot be .* No space left on device") as caught:
        make_hub_data(long, "data.streaming=true", f"data.cache_dir={tmp_path / 'cache'}")
    assert caught.value.exit_code == Exit.OUTPUT


def test_pictures_that_a_table_only_points_to_are_fetched(tmp_path):
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        for k, data in enumerate(make_shades(3)):
            archive.writestr(f"{k}.png", data)
    pointers = [{"bytes": None, "path": f"zip://{k}.png::{tmp_path / 'pictures.zip'}"} for k in (2, 0, 1)]
    path = write_table(tmp_path / "set", {"image": pointers})
    for streaming in ("true", "false"):
        words = [*GREY, f"data.streaming={streaming}", "data.val_fraction=0", "data.image_column=image"]
        assert read_shades(make_hub_data(path, *words).train) == [2, 0, 1]


# ------------------------------------------------------------------------------------------ columns and labels


def class_facts(path: Path, *words: str) -> tuple[list[str], list[int]]:
    data = make_hub_data(path, *GREY, "data.val_fraction=0", *words)
    return data.source.class_names, data.train.labels.tolist()


def test_labels_become_numbers_in_order(tmp_path):
    pictures = make_shades(4)
    words = write_table(tmp_path / "words", {"image": pictures, "label": ["b", "a", "c", "a"]})
    assert class_facts(words) == (["a", "b", "c"], [1, 0, 2, 0])
    numbers = write_table(tmp_path / "numbers", {"image": pictures, "target": [30, 4, 4, 7]})
    assert class_facts(numbers) == (["4", "7", "30"], [2, 0, 0, 1])
    unusual = write_table(tmp_path / "unusual", {"image": pictures, "id": [0, 1, 2, 3]})
    assert class_facts(unusual) == ([], [0, 0, 0, 0])
    assert class_facts(unusual, "data.label_column=id")[0] == ["0", "1", "2", "3"]
    several = write_table(tmp_path / "several", {"image": pictures, "coarse": [1] * 4, "fine_label": [0, 1, 1, 0]})
    assert class_facts(several) == (["0", "1"], [0, 1, 1, 0])


def test_class_labels_come_before_numbers_and_keep_names_without_pictures(tmp_path):
    kinds = {
        "a": datasets.ClassLabel(names=["x", "y", "z"]),
        "label": datasets.Value("int64"),
        "image": datasets.Image(),
    }
    table = {"a": [2, 0], "label": [5, 6], "image": [{"bytes": data, "path": None} for data in make_shades(2)]}
    datasets.Dataset.from_dict(table, features=datasets.Features(kinds)).save_to_disk(tmp_path / "set")
    assert class_facts(tmp_path / "set") == (["x", "y", "z"], [2, 0])
    assert class_facts(tmp_path / "set", "data.label_column=label") == (["5", "6"], [0, 1])


def test_a_held_out_part_without_labels_is_passed_over(tmp_path):
    path = write_table(tmp_path / "set", {"image": make_shades(3), "label": [0, 1, 1]})
    write_table(path, {"image": make_shades(2, 20), "label": [-1, -1]}, "validation")
    write_table(path, {"image": make_shades(2, 30), "label": [1, 0]}, "test")
    data = make_hub_data(path, *GREY)
    assert (read_shades(data.val), data.val.labels.tolist()) == ([30, 31], [1, 0])


# ------------------------------------------------------------------------------------------ what is told


@pytest.fixture
def fault(tmp_path):
    """The message about a table of these columns."""

    def told(columns: dict | Path, *words: str, **splits: dict) -> str:
        path = columns if isinstance(columns, Path) else write_table(tmp_path / "set", columns)
        for name, more in splits.items():
            write_table(path, more, name)
        with pytest.raises(UserError) as caught:
            make_hub_data(path, *GREY, *words)
        assert caught.value.exit_code == Exit.DATA
        assert "Traceback" not in str(caught.value)
        return str(caught.value).replace(str(path), "SET")

    return told


def test_columns_that_cannot_be_told_apart_are_listed(fault):
    two = {"image": make_shades(2), "mask": make_shades(2), "n": [1, 2]}
    listed = "image (binary), mask (binary), n (int64)"
    assert fault(two) == f"SET: several columns of images (image, mask). Set data.image_column=... to one of {listed}."
    assert fault(two, "data.streaming=true").startswith("SET: several columns of images (image, mask)")
    assert fault({"n": [1, 2], "sound": [b"RIFF", b"RIFF"]}) == (
        "SET: no column of images. Set data.image_column=... to one of n (int64), sound (binary)."
    )
    assert fault(two, "data.image_column=im") == f"data.image_column=im: no such column in SET, which has {listed}."
    assert fault(two, "data.image_column=n").startswith("data.image_column=n: holds no images in SET")
    words = [two, "data.image_column=mask", "data.label_column=mask"]
    assert fault(*words).startswith("data.label_column=mask: holds no classes in SET")


def test_several_class_labels_without_a_usual_name_are_listed(fault, tmp_path):
    kinds = {
        "smile": datasets.ClassLabel(names=NAMES),
        "hat": datasets.ClassLabel(names=NAMES),
        "img": datasets.Image(),
    }
    table = {"smile": [0], "hat": [1], "img": [{"bytes": make_shades(1)[0], "path": None}]}
    datasets.Dataset.from_dict(table, features=datasets.Features(kinds)).save_to_disk(tmp_path / "saved")
    assert "SET: several columns of classes. Set data.label_column to one of smile, hat" in fault(tmp_path / "saved")


def test_missing_and_unknown_labels(fault):
    labels = [0, -1, None, 1, 2]
    assert fault({"image": make_shades(5), "label": labels}).startswith(
        "data.path=SET: 2 of 5 labels in column label are missing (-1, empty or none), in row 1, 2. Set"
    )
    told = fault({"image": make_shades(2), "label": ["a", "b"]}, test={"image": make_shades(1), "label": ["c"]})
    assert told == "data.path=SET: split test has labels that are not in train: c"
    told = fault({"image": make_shades(2), "label": ["a", "b"]}, "data.streaming=true")
    assert "the classes of column label (string) are not known before it is read" in told
    assert "data.label_column=none" in told


def test_labels_that_pandas_wrote(fault, tmp_path):
    path = write_table(tmp_path / "floats", {"image": make_shades(4), "label": [2.0, 10.0, 2.0, 10.0]})
    data = make_hub_data(path, *GREY, "data.val_fraction=0")
    assert (data.source.class_names, data.train.labels.tolist()) == (["2", "10"], [0, 1, 0, 1])
    assert "2 of 4 labels in column label are missing" in fault(
        {"image": make_shades(4), "label": [1.0, float("nan"), None, 2.0]}
    )
    assert "1 of 2 labels in column label are missing" in fault({"image": make_shades(2), "label": ["a", ""]})


def test_columns_that_could_be_labels_are_noted(tmp_path):
    columns = {"image": make_shades(6), "id": list(range(6)), "breed": ["a", "b"] * 3}
    source = make_hub_data(write_table(tmp_path / "a", columns), *GREY).source
    assert source.class_names == []
    assert source.notes == [
        "no labels are used. Not used: breed (2 values). data.label_column=breed trains with its values as classes"
    ]
    assert make_hub_data(tmp_path / "a", *GREY, "data.label_column=none").source.notes == []


def test_a_stream_of_files_of_which_one_lacks_the_labels_ends_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("diffusion_lit.data.streaming.RETRY_WAITS", (60,))
    (tmp_path / "a").mkdir()
    for name, count in (("train-0", 3), ("train-1", 2)):
        table = make_table(range(count))
        (table if name == "train-0" else table.remove_columns("label")).to_parquet(tmp_path / "a" / f"{name}.parquet")
    for words in ([], [f"data.cache_dir={tmp_path / 'cache'}"]):
        for _ in range(2):
            told = data_error(make_hub_data, tmp_path / "a", *STREAMED, *words)
            assert "train-1.parquet: no column label, which other files have. It has image." in told


def test_a_stream_whose_label_is_no_class(fault, tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    pictures = [{"bytes": data, "path": None} for data in make_shades(3)]
    table = datasets.Dataset.from_dict({"image": pictures, "label": [0, 1, -1]}, features=features)
    table.save_to_disk(tmp_path / "saved")
    told = fault(tmp_path / "saved", "data.streaming=true")
    assert told.startswith(
        "row 2 of SET, train has label -1 in column label, which is not a class. Use another data.split"
    )
    assert "2 of 3" not in told


def test_broken_rows_are_named_by_their_number_in_the_table(fault):
    bad = make_shades(30)
    bad[17], bad[23] = b"no picture", None
    told = fault({"image": bad}, "data.val_fraction=0.5").splitlines()
    assert told[0] == "2 of 30 images cannot be read. Repair or remove them:"
    assert told[1] == "  row 17 of SET, train: cannot be read as an image (unknown image format)"
    assert told[2] == "  row 23 of SET, train: no image"


def test_splits_that_are_not_there(fault, sets, tmp_path):
    assert fault({"image": make_shades(1)}, "data.split=tes").startswith('data.path=SET: Unknown split "tes"')
    assert fault(sets["save_to_disk"], "data.split=tes") == "data.split=tes: not in SET, which has train, test"
    told = fault(sets["typed_parquet"], "data.split='train[:1]'", "data.streaming=true")
    assert told.endswith("Use data.max_images with data.streaming=true.")
    no_train = write_table(tmp_path / "no_train", {"image": make_shades(1)}, "test")
    told = fault(write_table(no_train, {"image": make_shades(1)}, "validation"))
    assert told == "data.path=SET: no train split. Set data.split to one of validation, test."


def test_a_set_without_rows(fault, tmp_path, monkeypatch):
    features = datasets.Features({"image": datasets.Image()})
    empty = datasets.Dataset.from_dict({"image": []}, features=features)
    stream = datasets.IterableDataset.from_generator(lambda: iter(()), features=features)
    for table, streaming in ((empty, "false"), (stream, "true")):
        tables = {"train": table}
        monkeypatch.setattr("diffusion_lit.data.sources.hf_tables.load_tables", lambda *args, tables=tables: tables)
        assert fault(tmp_path, f"data.streaming={streaming}") == "data.path=SET: split train is empty"


def test_files_that_are_none(fault, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "contain any data files" in fault(tmp_path / "empty")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "train.parquet").write_bytes(b"PAR1 cut off")
    assert "data.path=SET: " in fault(tmp_path / "broken")
    for path in ("./my_pictures", "/no/where", "~/no_such_folder", "a/b/c", "train.parquet", "C:\\pictures"):
        with pytest.raises(UserError, match="file or folder not found"):
            make_hub_data(f"'{path}'")


# ------------------------------------------------------------------------------------------ the hub


@pytest.fixture
def hub(monkeypatch):
    """A hub that answers every question alike; `asked` counts them."""
    asked = []

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.extend([self.path] * ("/datasets/" in self.path))
            status, code = answer[0]
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args):
            pass

    answer = [(404, "RepoNotFound")]
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield asked, answer
    server.shutdown()


def test_the_hub_is_asked_once_and_what_it_says_is_told(hub, fault):
    asked, answer = hub
    told = fault(Path("someone/things"))
    assert "no such folder, and no such data set on the hub. For a private one log in with" in told
    assert "data.path=<folder>, or use data=image_folder" in told
    answer[0] = (503, "")
    told = fault(Path("someone/things"))
    assert "the Hugging Face hub cannot be reached (" in told
    assert "503" in told
    assert "HF_HUB_OFFLINE=1" in told
    assert len(asked) == 2  # once each: no retries for half a minute
    assert "hf_secret" not in told


def test_a_set_that_asks_for_access(fault, monkeypatch):
    def gated(**words):
        text = "Dataset 'a/b' is a gated dataset on the Hub. Visit the dataset page to ask for access."
        raise datasets.exceptions.DatasetNotFoundError(text)

    monkeypatch.setattr("diffusion_lit.data.sources.hf_tables._require_on_hub", lambda path: None)
    monkeypatch.setattr("datasets.load_dataset", gated)
    told = fault(Path("a/b"))
    assert "SET" not in told.replace("data.path=SET: Dataset 'SET' is a gated dataset", "")
    assert "download it elsewhere and set data.path=<folder>" in told


def test_tokens_are_never_shown():
    assert shorten_error(ValueError("\n401 for hf_AbC123 at x\nmore")) == "401 for hf_... at x"
    assert shorten_error(ValueError()) == "ValueError"


def captioned(columns: dict) -> datasets.Dataset:
    """Five gray images, in the shades 0 to 4, with columns of texts."""
    text = datasets.Value("string")
    kinds = {name: datasets.Sequence(text) if isinstance(values[0], list) else text for name, values in columns.items()}
    features = datasets.Features({"image": datasets.Image(), **kinds, "label": datasets.ClassLabel(names=NAMES)})
    images = [{"bytes": data, "path": None} for data in make_shades(5)]
    return datasets.Dataset.from_dict({"image": images, **columns, "label": [0, 1, 0, 1, 0]}, features=features)


TEXTS = ["number  zero", None, "number two", "", "number four"]
CLEAN = [("number zero",), (), ("number two",), (), ("number four",)]


def save_to_folder(table: datasets.Dataset, to: Path) -> None:
    table.save_to_disk(to)


def save_as_parquet(table: datasets.Dataset, to: Path) -> None:
    table.to_parquet(to / "train-00000-of-00001.parquet")


def save_with_metadata(table: datasets.Dataset, to: Path) -> None:
    """A folder of images whose metadata.jsonl holds the texts."""
    lines = []
    for k, (data, text) in enumerate(zip(make_shades(5), table["text"], strict=True)):
        (to / f"{k}.png").write_bytes(data)
        lines.append(json.dumps({"file_name": f"{k}.png", "text": text}))
    (to / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")


@each("save", [save_to_folder, save_as_parquet, save_with_metadata], ids=lambda save: save.__name__)
def test_a_column_holds_the_captions(save, tmp_path):
    save(captioned({"text": TEXTS}), tmp_path)
    for column in ("auto", "text"):
        data = make_hub_data(tmp_path, f"data.caption_column={column}", "data.label_column=none", "data.val_fraction=0")
        assert [int(image[0, 0, 0]) for image in data.train.images] == list(range(5))
        assert list(data.train.captions) == CLEAN
    assert make_hub_data(tmp_path, "data.label_column=none").train.captions is None


def test_captions_follow_validation_limits_and_lists(tmp_path):
    lists = [["one", " a  one "], [], ["two"], ["three", "three"], ["four"]]
    table = captioned({"prompt": lists, "caption": TEXTS})
    datasets.DatasetDict({"train": table, "test": table.select([2, 0])}).save_to_disk(tmp_path)
    data = make_hub_data(tmp_path, "data.caption_column=auto", "data.max_images=3")
    zero, two = ("cat number zero",), ("cat number two",)  # the class stands in front
    assert (list(data.train.captions), list(data.val.captions)) == ([zero, ("dog",), two], [two, zero])
    data = make_hub_data(tmp_path, "data.caption_column=prompt")
    named = [("cat one", "cat a one"), ("dog",), ("cat two",), ("dog three",), ("cat four",)]
    assert list(data.train.captions) == named
    assert data.train.labels.tolist() == [0, 1, 0, 1, 0]


def test_columns_that_hold_no_captions_are_refused_with_all_columns(tmp_path):
    captioned({"note": TEXTS}).save_to_disk(tmp_path)
    for column, fault in (("label", "holds no texts"), ("words", "no such column")):
        message = data_error(make_hub_data, tmp_path, f"data.caption_column={column}")
        assert f"data.caption_column={column}: {fault} in {tmp_path}, train" in message
        assert "note (string)" in message
    assert make_hub_data(tmp_path, "data.caption_column=auto").train.captions is None
