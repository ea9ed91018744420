"""Well-known data sets: found on disk in one of their usual layouts, or downloaded by torchvision.

torchvision is imported only to download, to unpack, for CIFAR-10's pickles and for the
names of flowers.
"""

import gzip
import shutil
import socket
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from diffusion_lit.data.sources.arrays import load_array_file
from diffusion_lit.data.sources.data_source import Split, report_damaged_file
from diffusion_lit.data.sources.folder import ImageFolder
from diffusion_lit.data.sources.listing import SUFFIXES, list_files
from diffusion_lit.system.errors import DataError

tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)  # torchvision sets none when it unpacks

DOWNLOAD_DIR = Path("~/.cache/diffusion_lit")
Reader = Callable[[], dict[str, Split]]


@dataclass(frozen=True)
class KnownSet:
    """An entry of `SETS`.

    Args:
        torchvision: its class in `torchvision.datasets`.
        inner: the folder that torchvision makes in its root.
        size: of the download, for people.
        find: returns what reads the set from a folder (or file), None if it is not there.
        layouts: what `find` accepts, for people.
        names: class names by label; empty: no classes; None: those of torchvision.
        archive: name and MD5 of the archive, which may not have been unpacked yet.
    """

    torchvision: str
    inner: str
    size: str
    find: Callable[[Path], Reader | None]
    layouts: str
    names: tuple[str, ...] | None
    archive: tuple[str, str] | None = None


class TorchvisionSet:
    """One of `SETS`.

    Args:
        name: its key.
        root: a folder that holds it or that it is downloaded into; None:
            ~/.cache/diffusion_lit/<name>.
        labels: "auto", or "none" to train without classes.
    """

    def __init__(self, name: str, root: str | None = None, labels: str = "auto"):
        self.name, self.known, self.labels = name, SETS[name], labels
        self.root = Path(root or DOWNLOAD_DIR / name).expanduser().absolute()

    @cached_property
    def class_names(self) -> list[str]:
        """Return the class names; empty without labels."""
        if self.labels == "none":
            return []
        if isinstance(self._reader, ImageFolder):
            return self._reader.class_names
        if self.known.names is not None:
            return list(self.known.names)
        import torchvision

        return list(getattr(torchvision.datasets, self.known.torchvision).classes)

    def splits(self) -> dict[str, Split]:
        """Return "train", and "val" where the data set has a validation or test split."""
        splits = self._reader.splits() if isinstance(self._reader, ImageFolder) else self._reader()
        if self.labels == "none":
            return {name: Split(split.images, np.zeros_like(split.labels)) for name, split in splits.items()}
        return splits

    @property
    def left_out(self) -> dict[str, list[str]]:
        """Return what a folder of class folders leaves out."""
        return self._reader.left_out if isinstance(self._reader, ImageFolder) else {}

    @cached_property
    def _reader(self) -> Reader | ImageFolder:
        reader = self._find() or (self._unpack() and self._find())
        if not reader:
            self._download()
            reader = self._find()
        if not reader:
            raise DataError(f"data={self.name}: downloaded, but not found in {self.root}. Remove that folder.")
        return reader

    def _find(self) -> Reader | ImageFolder | None:
        inner = self.root / self.known.inner  # or the root is that folder, or one in it
        for folder in (inner, self.root / inner.name, self.root):
            if reader := self.known.find(folder):
                return reader
        has_images = self.known.names == () and self.root.is_dir() and any(self.root.glob("*.[jp]*g"))
        return ImageFolder(str(self.root), self.labels) if (self.root / "train").is_dir() or has_images else None

    def _unpack(self) -> bool:
        name, md5 = self.known.archive or ("", None)
        for folder in (self.root, self.root / self.known.inner) if name else ():
            if (folder / name).is_file():
                from torchvision.datasets.utils import check_integrity, extract_archive

                if not check_integrity(folder / name, md5):
                    raise DataError(f"{folder / name} is damaged or incomplete. Remove it, or download it again.")
                print(f"unpacking {folder / name}")
                with report_damaged_file(folder / name):
                    extract_archive(str(folder / name), str(folder))
                return True
        return False

    def _download(self) -> None:
        missing = f"data={self.name}: not found in {self.root} (as {self.known.layouts}, or train/<class>/ and test/)"
        if self.root.exists() and not self.root.is_dir():
            raise DataError(missing)
        nearby = (path for depth in ("*", "*/*") for path in self.root.glob(depth) if path.name[0] != ".")
        others = next((path for path in nearby if path.suffix.lower() in SUFFIXES), None)
        if others:
            parent = TorchvisionSet(self.name, str(self.root.parent), self.labels)._find()
            root = self.root.parent if parent else "... to the folder of the set, or to an empty one to download it"
            raise DataError(f"{missing}. That folder has other images, such as {others}. Set data.root={root}.")
        import torchvision

        print(f"downloading {self.name}, {self.known.size}, into {self.root}")
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(20)  # torchvision sets none
        try:
            getattr(torchvision.datasets, self.known.torchvision)(self.root, download=True)
        except Exception as error:  # of the network, the disk, a checksum, gdown
            if not any(path.is_file() for path in self.root.rglob("*")):
                shutil.rmtree(self.root, ignore_errors=True)
            reason = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
            raise DataError(f"{missing} and cannot be downloaded: {reason}") from None
        finally:
            socket.setdefaulttimeout(before)


# ------------------------------------------------------------------------------------------ layouts


def find_cifar10(folder: Path) -> Reader | None:
    """Find the pickles of CIFAR-10."""
    return partial(_read_cifar10, folder) if (folder / "data_batch_1").is_file() else None


def _read_cifar10(folder: Path) -> dict[str, Split]:
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    in_folder = type("InFolder", (CIFAR10,), {"base_folder": folder.name})  # whatever the folder is called
    try:
        sets = {"train": in_folder(folder.parent, train=True), "val": in_folder(folder.parent, train=False)}
    except RuntimeError as error:
        files = [*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])]
        bad = ", ".join(name for name, md5 in files if not check_integrity(folder / name, md5))
        raise DataError(f"{folder}: missing or damaged files (MD5): {bad or error}. Unpack it again.") from None
    return {name: Split(one.data, np.array(one.targets, dtype=np.int64)) for name, one in sets.items()}


def find_mnist(folder: Path) -> Reader | None:
    """Find the four files of Y. LeCun's MNIST, compressed or not, or an .npz like that of Keras."""
    pairs = {"train": "train", "val": "t10k"}
    files = {
        split: [_find_idx(folder, f"{name}-images-idx3"), _find_idx(folder, f"{name}-labels-idx1")]
        for split, name in pairs.items()
    }
    if all(path for pair in files.values() for path in pair):
        return partial(_read_idx_splits, files)
    for path in [folder] if folder.suffix == ".npz" else sorted(folder.glob("*.npz")):
        if path.is_file():
            with report_damaged_file(path), load_array_file(path) as arrays:
                if {"x_train", "y_train", "x_test", "y_test"} <= set(arrays):
                    return partial(_read_npz, path)
    return None


def _find_idx(folder: Path, name: str) -> Path | None:
    spellings = (name, name.replace("-idx", ".idx"))
    paths = [folder / f"{spelling}-ubyte{suffix}" for suffix in ("", ".gz") for spelling in spellings]
    return next((path for path in paths if path.is_file()), None)


def _read_idx_splits(files: dict[str, list[Path]]) -> dict[str, Split]:
    return {name: _make_split(_read_idx(images), _read_idx(labels), images) for name, (images, labels) in files.items()}


def _read_idx(path: Path) -> np.ndarray:
    with report_damaged_file(path):
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        if data[:3] != b"\0\0\x08":  # unsigned bytes
            raise ValueError("not an idx file of bytes")
        axes = data[3]
        return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(np.frombuffer(data, ">i4", axes, offset=4))


def _read_npz(path: Path) -> dict[str, Split]:
    with report_damaged_file(path), load_array_file(path) as arrays:
        return {
            split: _make_split(arrays[f"x_{name}"], arrays[f"y_{name}"], path)
            for split, name in (("train", "train"), ("val", "test"))
        }


def _make_split(images: np.ndarray, labels: np.ndarray, path: Path) -> Split:
    if images.dtype != np.uint8 or images.ndim != 3 or labels.shape != images.shape[:1] or labels.max(initial=0) > 9:
        raise DataError(f"{path}: expected uint8 images (N, H, W) with as many labels 0 to 9. Remove the file.")
    return Split(images, labels.astype(np.int64))


def find_celeba(folder: Path) -> Reader | None:
    """Find the folder img_align_celeba."""
    inside = folder / "img_align_celeba"
    if not inside.is_dir() and folder.name != "img_align_celeba":
        return None
    return partial(_read_celeba, inside if inside.is_dir() else folder)


def _read_celeba(folder: Path) -> dict[str, Split]:
    """Return the official splits (0 train, 1 validation, 2 test) where their list lies beside the images."""
    paths, partition = list_files(folder).images, folder.parent / "list_eval_partition.txt"
    if not paths:
        raise DataError(f"{folder}: no images found")
    if not partition.is_file():
        return {"train": Split(paths, np.zeros(len(paths), dtype=np.int64))}
    with report_damaged_file(partition):
        split_of = {name: int(k) for name, k in map(str.split, partition.read_text(encoding="utf-8").splitlines())}
    missing = len(split_of.keys() - {path.name for path in paths})
    if missing:
        raise DataError(
            f"{folder}: {missing:,} of the {len(split_of):,} images of {partition.name} are missing. Unpack it again."
        )
    splits = {name: [p for p in paths if split_of.get(p.name) == k] for name, k in (("train", 0), ("val", 1))}
    return {name: Split(paths, np.zeros(len(paths), dtype=np.int64)) for name, paths in splits.items()}


def find_flowers102(folder: Path) -> Reader | None:
    """Find the folder jpg and the two .mat files."""
    files = [folder / name for name in ("jpg", "imagelabels.mat", "setid.mat")]
    return partial(_read_flowers102, *files) if all(path.exists() for path in files) else None


def _read_flowers102(folder: Path, labels_file: Path, splits_file: Path) -> dict[str, Split]:
    """Return the official train and test splits together, since the test split is the largest, and validation."""
    from scipy.io import loadmat

    with report_damaged_file(labels_file):
        labels = loadmat(labels_file)["labels"].ravel().astype(np.int64) - 1
    with report_damaged_file(splits_file):
        train, test, val = (loadmat(splits_file)[key].ravel() for key in ("trnid", "tstid", "valid"))
    return {
        name: Split([folder / f"image_{k:05d}.jpg" for k in numbers], labels[numbers - 1])
        for name, numbers in (("train", np.sort(np.concatenate([train, test]))), ("val", np.sort(val)))
    }


MNIST_LAYOUTS = "*-ubyte[.gz], *.npz with x_train y_train x_test y_test"
SETS = {
    "cifar10": KnownSet(
        "CIFAR10", "cifar-10-batches-py", "170 MB", find_cifar10, "cifar-10-batches-py, cifar-10-python.tar.gz",
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        ("cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"),
    ),
    "mnist": KnownSet("MNIST", "MNIST/raw", "12 MB", find_mnist, f"MNIST/raw, {MNIST_LAYOUTS}", tuple("0123456789")),
    "fashion_mnist": KnownSet(
        "FashionMNIST", "FashionMNIST/raw", "31 MB", find_mnist, f"FashionMNIST/raw, {MNIST_LAYOUTS}",
        ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    "celeba": KnownSet(
        "CelebA", "celeba", "1.4 GB", find_celeba, "celeba/img_align_celeba, img_align_celeba.zip, images", (),
        ("img_align_celeba.zip", "00d2c5bc6d35e252742224ab0c1e8fcb"),
    ),
    "flowers102": KnownSet(
        "Flowers102", "flowers-102", "345 MB", find_flowers102,
        "flowers-102, 102flowers.tgz with the two .mat files", None,
        ("102flowers.tgz", "52808999861908f626f3c1f4e79d11fa"),
    ),
}  # fmt: skip
# the classes that `_target_` of conf/data names
CIFAR10, MNIST, FashionMNIST, CelebA, Flowers102 = (partial(TorchvisionSet, name) for name in SETS)
