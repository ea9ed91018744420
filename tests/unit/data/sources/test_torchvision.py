"""CIFAR-10, MNIST and the others: the same arrays from every layout they usually lie in, and what is told without."""

import gzip
import hashlib
import http.server
import pickle
import shutil
import tarfile
import threading
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image

from diffusion_lit.config.compose import compose_configs, resolve_data
from diffusion_lit.data.datamodule import ImageDataModule, datamodule_from_config
from diffusion_lit.data.sources.torchvision import SETS
from tests.cases import each
from tests.image_sets import data_error, make_digit_arrays
from tests.trained import train

RNG = np.random.default_rng(0)
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
NOBODY = "http://127.0.0.1:9/"  # nobody listens there


def module(*words: object) -> ImageDataModule:
    config, source = resolve_data(compose_configs("train", ["experiment=none", *map(str, words)])[0])
    data = datamodule_from_config(source, config["data"], 0, 4)
    data.setup()
    return data


def told(*words: object) -> str:
    return data_error(module, *words)


def assert_same(data: ImageDataModule, other: ImageDataModule) -> None:
    assert data.source.class_names == other.source.class_names
    for store, expected in ((data.train, other.train), (data.val, other.val)):
        np.testing.assert_array_equal(store.images, expected.images)
        np.testing.assert_array_equal(store.labels, expected.labels)
        assert store.fingerprint == expected.fingerprint


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


# ------------------------------------------------------------------------------------------ CIFAR-10


def write_cifar10(root: Path, train: tuple, test: tuple, monkeypatch) -> Path:
    """torchvision's layout, and its check sums changed to those of these pictures."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    batches = [(f"data_batch_{k + 1}", images, labels) for k, (images, labels) in enumerate(fifths(*train))]
    for name, images, labels in [*batches, ("test_batch", *test)]:
        entry = {"data": images.transpose(0, 3, 1, 2).reshape(len(images), 3072), "labels": labels.tolist()}
        (folder / name).write_bytes(pickle.dumps(entry))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": CLASSES}))
    sums = [[name, md5(folder / name)] for name, _, _ in batches]
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "train_list", sums)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "test_list", [["test_batch", md5(folder / "test_batch")]])
    meta = torchvision.datasets.CIFAR10.meta | {"md5": md5(folder / "batches.meta")}
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "meta", meta)
    return folder


def fifths(images: np.ndarray, labels: np.ndarray) -> list[tuple]:
    return list(zip(np.array_split(images, 5), np.array_split(labels, 5), strict=True))


@pytest.fixture
def small_cifar10(tmp_path, monkeypatch):
    """Pictures (N, H, W, C) and labels, and the folder with them."""
    parts = [(RNG.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8), RNG.integers(0, 10, n)) for n in (25, 7)]
    return parts, write_cifar10(tmp_path / "cifar", *parts, monkeypatch)


@pytest.mark.parametrize("ending", ["0.jpg", pytest.param(".jpg", marks=pytest.mark.slow)])
def test_cifar10_through_batches_and_through_folders(ending, tmp_path, shared_data, monkeypatch):
    """Real pictures, 6,000 or all: the same arrays from class folders, and from batches of the pixels in them."""
    root = tmp_path / "folders"
    with tarfile.open(shared_data / "cifar10.tar.xz") as archive:
        archive.extractall(root, [file for file in archive if file.name.endswith(ending)], filter="data")
    (root,) = {path.parent for path in root.rglob("train")}
    parts = []
    for part in ("train", "test"):
        paths = [sorted((root / part / name).iterdir()) for name in CLASSES]
        images = np.stack([np.asarray(Image.open(path)) for folder in paths for path in folder])
        parts.append((images, np.repeat(np.arange(10), [len(folder) for folder in paths])))
    write_cifar10(tmp_path / "batches", *parts, monkeypatch)
    batches = module("data=cifar10", f"data.root={tmp_path / 'batches'}")
    n = 50000 if ending == ".jpg" else 5000
    assert (batches.train.images.shape, batches.val.images.shape) == ((n, 3, 32, 32), (n // 5, 3, 32, 32))
    np.testing.assert_array_equal(batches.train.images, parts[0][0].transpose(0, 3, 1, 2))
    folders = module("data=cifar10", f"data.root={root}")
    assert_same(folders, batches)
    assert_same(module("data=image_folder", f"data.root={root}"), folders)


def test_cifar10_is_found_by_its_own_folder_and_in_its_archive(tmp_path, small_cifar10, monkeypatch):
    parts, folder = small_cifar10
    data = module("data=cifar10", f"data.root={folder.parent}")
    for store, (images, labels) in zip((data.train, data.val), parts, strict=True):
        np.testing.assert_array_equal(store.images, images.transpose(0, 3, 1, 2))
        np.testing.assert_array_equal(store.labels, labels)
    assert data.source.class_names == CLASSES
    assert_same(module("data=cifar10", f"data.root={folder}"), data)
    assert_same(module("data=cifar10", f"data.root={shutil.copytree(folder, tmp_path / 'renamed')}"), data)
    archive = tmp_path / "packed" / "cifar-10-python.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(folder, folder.name)
    assert "cifar-10-python.tar.gz is damaged or incomplete" in told("data=cifar10", f"data.root={archive.parent}")
    sums_changed("cifar10", md5(archive), monkeypatch)
    assert_same(module("data=cifar10", f"data.root={archive.parent}"), data)


def sums_changed(name: str, md5: str, monkeypatch) -> None:
    """The check sum of a set's archive is this one."""
    monkeypatch.setitem(SETS, name, replace(SETS[name], archive=(SETS[name].archive[0], md5)))


def test_damaged_batches_are_named(small_cifar10):
    folder = small_cifar10[1]
    (folder / "data_batch_3").write_bytes((folder / "data_batch_3").read_bytes()[:-9])
    (folder / "test_batch").unlink()
    assert "missing or damaged files (MD5): data_batch_3, test_batch. Unpack it again" in told(
        "data=cifar10", f"data.root={folder.parent}"
    )


def test_without_classes_and_a_short_training(small_cifar10, tmp_path):
    root = f"data.root={small_cifar10[1]}"
    data = module("data=cifar10", root, "data.labels=none")
    assert data.source.class_names == []
    assert not data.train.labels.any()
    trace = train(tmp_path / "run", "experiment=none", "data=cifar10", root, "max_steps=2")
    assert np.isfinite([float(row["train/loss"]) for row in trace]).all()


# ------------------------------------------------------------------------------------------ MNIST


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.astype(np.uint8).tobytes()


def write_idx(folder: Path, arrays: dict, packed: bool = False, name: str = "{}-{}-idx{}-ubyte") -> Path:
    folder.mkdir(parents=True)
    for part, key in (("train", "train"), ("t10k", "test")):
        for what, axis, letter in (("images", 3, "x"), ("labels", 1, "y")):
            data = idx(arrays[f"{letter}_{key}"])
            path = folder / (name.format(part, what, axis) + ".gz" * packed)
            path.write_bytes(gzip.compress(data) if packed else data)
    return folder


@pytest.fixture(scope="module")
def digits() -> dict:
    return make_digit_arrays()


@pytest.mark.parametrize(("name", "inner"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_digits_and_garments_in_every_layout(name, inner, tmp_path, digits):
    np.savez(tmp_path / "keras.npz", **digits)
    data = module(f"data={name}", f"data.root={tmp_path / 'keras.npz'}")
    np.testing.assert_array_equal(data.train.images[:, 0], digits["x_train"])
    np.testing.assert_array_equal(data.val.images[:, 0], digits["x_test"])
    assert data.train.labels.tolist() == [*range(10)] * 2
    assert len(data.source.class_names) == 10
    raw = write_idx(tmp_path / "a" / inner / "raw", digits)
    roots = [tmp_path, raw.parent.parent, raw.parent, raw]
    roots += [
        write_idx(tmp_path / "b", digits, packed=True),
        write_idx(tmp_path / "c", digits, name="{}-{}.idx{}-ubyte"),
    ]
    for root in roots:
        assert_same(module(f"data={name}", f"data.root={root}"), data)
    theirs = getattr(torchvision.datasets, inner)(tmp_path / "a", train=False)
    np.testing.assert_array_equal(data.val.images[:, 0], theirs.data)
    assert name == "mnist" or data.source.class_names == theirs.classes


def test_digits_in_class_folders(tmp_path, digits):
    np.savez(tmp_path / "keras.npz", **digits)
    order = np.argsort(digits["y_train"], kind="stable")
    for part, key in (("train", "train"), ("test", "test")):
        for k, (image, label) in enumerate(zip(digits[f"x_{key}"], digits[f"y_{key}"], strict=True)):
            path = tmp_path / "folders" / part / str(label) / f"{k:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    folders = module("data=mnist", f"data.root={tmp_path / 'folders'}")
    data = module("data=mnist", f"data.root={tmp_path / 'keras.npz'}")
    np.testing.assert_array_equal(folders.train.images, data.train.images[order])
    np.testing.assert_array_equal(folders.val.images, data.val.images)
    assert folders.source.class_names == data.source.class_names


def test_real_digits(shared_data):
    data = module("data=mnist", f"data.root={shared_data}")
    assert (data.train.images.shape, data.val.images.shape) == ((10000, 1, 28, 28), (2000, 1, 28, 28))
    with np.load(shared_data / "mnist_12k.npz") as arrays:
        np.testing.assert_array_equal(data.val.images[:, 0], arrays["x_test"])
        np.testing.assert_array_equal(data.train.labels, arrays["y_train"])


def test_damaged_files_of_digits_are_named(tmp_path, digits):
    raw, packed = write_idx(tmp_path / "raw", digits), write_idx(tmp_path / "packed", digits, packed=True)
    for path in (raw / "t10k-images-idx3-ubyte", packed / "train-labels-idx1-ubyte.gz"):
        path.write_bytes(path.read_bytes()[:-5])
        assert told("data=mnist", f"data.root={path.parent}").startswith(f"{path} is damaged or incomplete (")
    (raw / "t10k-images-idx3-ubyte").write_bytes(b"<html>")
    assert "not an idx file" in told("data=mnist", f"data.root={raw}")
    np.savez(tmp_path / "keras.npz", **digits | {"y_test": digits["y_train"]})
    assert "as many labels" in told("data=mnist", f"data.root={tmp_path / 'keras.npz'}")
    (tmp_path / "keras.npz").write_bytes(b"PK cut off")
    assert "keras.npz is damaged" in told("data=mnist", f"data.root={tmp_path / 'keras.npz'}")


# ------------------------------------------------------------------------------------------ faces and flowers


def write_pictures(folder: Path, names: list[str]) -> list[int]:
    """Grey pictures, and their shades."""
    folder.mkdir(parents=True)
    for k, name in enumerate(names):
        Image.new("RGB", (10, 12), (10 * k,) * 3).save(folder / name, quality=100)
    return [10 * k for k in range(len(names))]


def shades(store) -> list[int]:
    return store.images[:, 0, 32, 32].tolist()


def test_faces_have_their_official_parts_and_no_classes(tmp_path, monkeypatch):
    names = [f"{k:06d}.jpg" for k in range(1, 8)]
    all_ = write_pictures(tmp_path / "celeba" / "img_align_celeba", names)
    loose = module("data=celeba", f"data.root={tmp_path / 'celeba' / 'img_align_celeba'}", "data.val_fraction=0")
    assert (shades(loose.train), loose.val, loose.source.class_names) == (all_, None, [])
    parts = tmp_path / "celeba" / "list_eval_partition.txt"
    parts.write_text("".join(f"{name} {part}\n" for name, part in zip(names, [0, 0, 1, 0, 2, 1, 0], strict=True)))
    data = module("data=celeba", f"data.root={tmp_path}")
    assert (shades(data.train), shades(data.val)) == ([0, 10, 30, 60], [20, 50])
    for root in (tmp_path / "celeba", tmp_path / "celeba" / "img_align_celeba"):
        assert_same(module("data=celeba", f"data.root={root}"), data)
    with zipfile.ZipFile(tmp_path / "celeba" / "img_align_celeba.zip", "w") as archive:
        for name in names:
            archive.write(tmp_path / "celeba" / "img_align_celeba" / name, f"img_align_celeba/{name}")
    shutil.rmtree(tmp_path / "celeba" / "img_align_celeba")
    sums_changed("celeba", md5(tmp_path / "celeba" / "img_align_celeba.zip"), monkeypatch)
    assert_same(module("data=celeba", f"data.root={tmp_path}"), data)
    (tmp_path / "celeba" / "img_align_celeba" / names[3]).unlink()
    assert "1 of the 7 images of list_eval_partition.txt are missing" in told("data=celeba", f"data.root={tmp_path}")
    write_pictures(tmp_path / "plain", names)
    assert shades(module("data=celeba", f"data.root={tmp_path / 'plain'}", "data.val_fraction=0").train) == all_


def test_flowers_are_split_as_said(tmp_path):
    from scipy.io import savemat

    folder = tmp_path / "flowers-102"
    write_pictures(folder / "jpg", [f"image_{k:05d}.jpg" for k in range(1, 7)])
    savemat(folder / "imagelabels.mat", {"labels": [[1, 102, 3, 4, 5, 6]]})
    savemat(folder / "setid.mat", {"trnid": [[6, 2]], "valid": [[5, 1]], "tstid": [[4, 3]]})
    data = module("data=flowers102", f"data.root={tmp_path}")
    assert (shades(data.train), shades(data.val)) == ([10, 20, 30, 50], [0, 40])
    assert (data.train.labels.tolist(), data.val.labels.tolist()) == ([101, 2, 3, 5], [0, 4])
    assert (len(data.source.class_names), data.source.class_names[0]) == (102, "pink primrose")
    assert_same(module("data=flowers102", f"data.root={folder}"), data)
    (folder / "setid.mat").write_bytes(b"MATLAB 5.0 cut off")
    assert "setid.mat is damaged or incomplete" in told("data=flowers102", f"data.root={tmp_path}")


def test_an_archive_that_may_not_be_unpacked_there_is_not_called_damaged(tmp_path, monkeypatch):
    archive = tmp_path / "img_align_celeba.zip"
    zipfile.ZipFile(archive, "w").close()
    sums_changed("celeba", md5(archive), monkeypatch)
    error = PermissionError(13, "Permission denied", "/read/only")
    monkeypatch.setattr("torchvision.datasets.utils.extract_archive", lambda *paths: (_ for _ in ()).throw(error))
    assert told("data=celeba", f"data.root={tmp_path}") == "/read/only: Permission denied"


# ------------------------------------------------------------------------------------------ downloads


@each("name", ["cifar10", "mnist", "fashion_mnist", "celeba", "flowers102"])
def test_what_cannot_be_downloaded_is_told_and_leaves_nothing(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", NOBODY + "a.tar.gz")
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [NOBODY])
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "mirrors", [NOBODY])
    monkeypatch.setattr(torchvision.datasets.Flowers102, "_download_url_prefix", NOBODY)
    monkeypatch.setattr(torchvision.datasets.CelebA, "download", partial(exec, "raise OSError('refused')"))
    message = told(f"data={name}", f"data.root={tmp_path / 'new'}")
    assert message.startswith(f"data={name}: not found in {tmp_path / 'new'} (as ")
    assert "train/<class>/" in message or name == "celeba"
    assert "and cannot be downloaded: " in message
    assert "refused" in message
    assert "\n" not in message
    printed = capsys.readouterr().out
    assert printed.startswith(f"downloading {name}, ")
    assert printed.endswith(f"B, into {tmp_path / 'new'}\n")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_downloaded_into_a_folder_of_other_pictures(tmp_path, capsys):
    set_of_ones_own = tmp_path / "cifar"
    for folder in ("train/cat", "train/dog", "test/cat"):
        (set_of_ones_own / folder).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(set_of_ones_own / folder / "1.png")
    message = told("data=cifar10", f"data.root={set_of_ones_own / 'train'}")
    assert message.endswith(f"1.png. Set data.root={set_of_ones_own}.")
    message = told("data=mnist", f"data.root={set_of_ones_own / 'train'}")
    assert "That folder has other images, such as " in message
    assert capsys.readouterr().out == ""


def test_a_download_is_found_again(tmp_path, digits, monkeypatch, capsys):
    files = write_idx(tmp_path / "served", digits, packed=True)
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=files)
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *args: None)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
    sums = [(path.name, md5(path)) for path in sorted(files.iterdir())]
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", sums)
    monkeypatch.setattr("diffusion_lit.data.sources.torchvision.DOWNLOAD_DIR", tmp_path / "cache")
    away = (files / sums[3][0]).rename(tmp_path / "away")
    assert "HTTP Error 404" in told("data=mnist")  # three of four files are there
    away.rename(files / sums[3][0])
    data = module("data=mnist")
    server.shutdown()
    assert (
        capsys.readouterr().out.splitlines() == [f"downloading mnist, 12 MB, into {tmp_path / 'cache' / 'mnist'}"] * 2
    )
    assert_same(module("data=mnist"), data)
    assert capsys.readouterr().out == ""
    np.testing.assert_array_equal(data.train.images[:, 0], digits["x_train"])
