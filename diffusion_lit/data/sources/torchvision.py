"""Well-known sets: found on disk in one of their usual layouts, or downloaded by torchvision.

torchvision is imported only to download, to unpack, for CIFAR-10's pickles and for the names of flowers.
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

from diffusion_lit.data.sources.folder import ImageFolder, Split, is_picture, pictures_below, whole
from diffusion_lit.system.errors import Exit, UserError

tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)  # torchvision names none when it unpacks

CACHE = Path("~/.cache/diffusion_lit")
Read = Callable[[], dict[str, Split]]


@dataclass(frozen=True)
class KnownSet:
    """A row of the table of sets.

    Args:
        torchvision: its class in `torchvision.datasets`.
        inner: the folder that torchvision makes in its root.
        size: of the download.
        find: from a folder (or file) to what reads the set there; None: it is not there.
        layouts: what `find` knows, for people.
        names: of the classes by label; None: torchvision's.
        archive: its name and MD5, if it may lie there without having been unpacked.
    """

    torchvision: str
    inner: str
    size: str
    find: Callable[[Path], Read | None]
    layouts: str
    names: tuple[str, ...] | None
    archive: tuple[str, str] | None = None


class TorchvisionSet:
    """One of `SETS`.

    Args:
        name: which.
        root: a folder that holds it or that it is downloaded into; None: ~/.cache/diffusion_lit/<name>.
        labels: "auto", or "none" to train without classes.
    """

    def __init__(self, name: str, root: str | None = None, labels: str = "auto"):
        self.name, self.known, self.labels = name, SETS[name], labels
        self.root = Path(root or CACHE / name).expanduser().absolute()

    @cached_property
    def class_names(self) -> list[str]:
        if self.labels == "none":
            return []
        if isinstance(self.found, ImageFolder):
            return self.found.class_names
        if self.known.names is not None:
            return list(self.known.names)
        import torchvision

        return list(getattr(torchvision.datasets, self.known.torchvision).classes)

    def splits(self) -> dict[str, Split]:
        splits = self.found.splits() if isinstance(self.found, ImageFolder) else self.found()
        if self.labels == "none":
            return {name: Split(split.pictures, np.zeros_like(split.labels)) for name, split in splits.items()}
        return splits

    @cached_property
    def found(self) -> Read | ImageFolder:
        found = self._find()
        if not found and self._unpack():
            found = self._find()
        if not found:
            self._download()
            found = self._find()
        if not found:
            raise UserError(Exit.DATA, f"data={self.name} was downloaded but is not in {self.root}: remove that folder")
        return found

    def _find(self) -> Read | ImageFolder | None:
        inner = self.root / self.known.inner  # or the root is that folder, or one in it
        for folder in (inner, self.root / inner.name, self.root):
            if read := self.known.find(folder):
                return read
        loose = self.known.names == () and self.root.is_dir() and any(self.root.glob("*.[jp]*g"))
        return ImageFolder(str(self.root), self.labels) if (self.root / "train").is_dir() or loose else None

    def _unpack(self) -> bool:
        name, md5 = self.known.archive or ("", None)
        for folder in (self.root, self.root / self.known.inner) if name else ():
            if (folder / name).is_file():
                from torchvision.datasets.utils import check_integrity, extract_archive

                if not check_integrity(folder / name, md5):
                    raise UserError(Exit.DATA, f"{folder / name} is damaged or half downloaded: remove it")
                print(f"unpacking {folder / name}")
                with whole(folder / name):
                    extract_archive(str(folder / name), str(folder))
                return True
        return False

    def _download(self) -> None:
        missing = f"data={self.name} is not in {self.root} (as {self.known.layouts}, or train/<class>/ and test/)"
        if self.root.exists() and not self.root.is_dir():
            raise UserError(Exit.DATA, missing)
        others = next((path for depth in ("*", "*/*") for path in self.root.glob(depth) if is_picture(path)), None)
        if others:
            near = TorchvisionSet(self.name, str(self.root.parent), self.labels)._find()
            place = f"data.root={self.root.parent}" if near else "the folder of the set, or an empty one to download it"
            raise UserError(Exit.DATA, f"{missing}; that folder has other pictures, such as {others}: name {place}")
        import torchvision

        print(f"downloading {self.name}, {self.known.size}, into {self.root}")
        patience = socket.getdefaulttimeout()
        socket.setdefaulttimeout(20)  # torchvision itself would wait for ever
        try:
            getattr(torchvision.datasets, self.known.torchvision)(self.root, download=True)
        except Exception as error:  # of the network, the disk, a checksum, gdown
            if not any(path.is_file() for path in self.root.rglob("*")):
                shutil.rmtree(self.root, ignore_errors=True)
            why = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
            raise UserError(Exit.DATA, f"{missing} and cannot be downloaded: {why}") from None
        finally:
            socket.setdefaulttimeout(patience)


# ------------------------------------------------------------------------------------------ layouts


def cifar10(folder: Path) -> Read | None:
    return partial(_read_cifar10, folder) if (folder / "data_batch_1").is_file() else None


def _read_cifar10(folder: Path) -> dict[str, Split]:
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    here = type("Here", (CIFAR10,), {"base_folder": folder.name})  # whatever the folder is called
    try:
        parts = {"train": here(folder.parent, train=True), "val": here(folder.parent, train=False)}
    except RuntimeError as error:
        files = [*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])]
        bad = ", ".join(name for name, md5 in files if not check_integrity(folder / name, md5))
        raise UserError(Exit.DATA, f"{folder}: missing or damaged (MD5): {bad or error}; unpack it again") from None
    return {name: Split(part.data, np.array(part.targets, dtype=np.int64)) for name, part in parts.items()}


def idx_or_npz(folder: Path) -> Read | None:
    """The four files of Y. LeCun's MNIST, packed or not; or an .npz such as Keras has."""
    names = {"train": ("train-images-idx3", "train-labels-idx1"), "val": ("t10k-images-idx3", "t10k-labels-idx1")}
    files = {part: [_idx_file(folder, name) for name in pair] for part, pair in names.items()}
    if all(path for pair in files.values() for path in pair):
        return lambda: {
            part: _labelled(_read_idx(images), _read_idx(labels), images) for part, (images, labels) in files.items()
        }
    for path in [folder] if folder.suffix == ".npz" else sorted(folder.glob("*.npz")):
        if path.is_file():
            with whole(path), np.load(path) as arrays:
                if {"x_train", "y_train", "x_test", "y_test"} <= set(arrays):
                    return partial(_read_npz, path)
    return None


def _idx_file(folder: Path, name: str) -> Path | None:
    spelt = (name, name.replace("-idx", ".idx"))
    paths = [folder / f"{word}-ubyte{packed}" for packed in ("", ".gz") for word in spelt]
    return next((path for path in paths if path.is_file()), None)


def _read_idx(path: Path) -> np.ndarray:
    with whole(path):
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        if data[:3] != b"\0\0\x08":  # of bytes
            raise ValueError("no idx file of bytes")
        axes = data[3]
        return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(np.frombuffer(data, ">i4", axes, offset=4))


def _read_npz(path: Path) -> dict[str, Split]:
    with whole(path), np.load(path) as arrays:
        return {
            part: _labelled(arrays[f"x_{name}"], arrays[f"y_{name}"], path)
            for part, name in (("train", "train"), ("val", "test"))
        }


def _labelled(images: np.ndarray, labels: np.ndarray, path: Path) -> Split:
    if images.dtype != np.uint8 or images.ndim != 3 or labels.shape != images.shape[:1] or labels.max(initial=0) > 9:
        raise UserError(Exit.DATA, f"{path}: not uint8 pictures (N, H, W) with as many labels 0 to 9: remove it")
    return Split(images, labels.astype(np.int64))


def celeba(folder: Path) -> Read | None:
    inside = folder / "img_align_celeba"
    if not inside.is_dir() and folder.name != "img_align_celeba":
        return None
    return partial(_read_celeba, inside if inside.is_dir() else folder)


def _read_celeba(folder: Path) -> dict[str, Split]:
    """The official parts (0 train, 1 validation, 2 test) where the list of them is beside the pictures."""
    paths, partition = pictures_below(folder), folder.parent / "list_eval_partition.txt"
    if not paths:
        raise UserError(Exit.DATA, f"{folder}: no pictures found")
    if not partition.is_file():
        return {"train": Split(paths, np.zeros(len(paths), dtype=np.int64))}
    with whole(partition):
        part_of = {name: int(part) for name, part in map(str.split, partition.read_text().splitlines())}
    missing = len(part_of.keys() - {path.name for path in paths})
    if missing:
        raise UserError(
            Exit.DATA,
            f"{folder} lacks {missing:,} of the {len(part_of):,} pictures of {partition.name}: unpack it again",
        )
    parts = {name: [p for p in paths if part_of.get(p.name) == k] for name, k in (("train", 0), ("val", 1))}
    return {name: Split(part, np.zeros(len(part), dtype=np.int64)) for name, part in parts.items()}


def flowers102(folder: Path) -> Read | None:
    files = [folder / name for name in ("jpg", "imagelabels.mat", "setid.mat")]
    return partial(_read_flowers102, *files) if all(path.exists() for path in files) else None


def _read_flowers102(folder: Path, labels_file: Path, parts_file: Path) -> dict[str, Split]:
    """Its official test part is the largest and is trained on, its validation part is held out."""
    from scipy.io import loadmat

    with whole(labels_file):
        labels = loadmat(labels_file)["labels"].ravel().astype(np.int64) - 1
    with whole(parts_file):
        train, test, val = (loadmat(parts_file)[key].ravel() for key in ("trnid", "tstid", "valid"))
    parts = {"train": np.sort(np.concatenate([train, test])), "val": np.sort(val)}
    return {
        name: Split([folder / f"image_{k:05d}.jpg" for k in numbers], labels[numbers - 1])
        for name, numbers in parts.items()
    }


IDX = "*-ubyte[.gz], *.npz with x_train y_train x_test y_test"
SETS = {
    "cifar10": KnownSet(
        "CIFAR10", "cifar-10-batches-py", "170 MB", cifar10, "cifar-10-batches-py, cifar-10-python.tar.gz",
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        ("cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"),
    ),
    "mnist": KnownSet("MNIST", "MNIST/raw", "12 MB", idx_or_npz, f"MNIST/raw, {IDX}", tuple("0123456789")),
    "fashion_mnist": KnownSet(
        "FashionMNIST", "FashionMNIST/raw", "31 MB", idx_or_npz, f"FashionMNIST/raw, {IDX}",
        ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    "celeba": KnownSet(
        "CelebA", "celeba", "1.4 GB", celeba, "celeba/img_align_celeba, img_align_celeba.zip, pictures", (),
        ("img_align_celeba.zip", "00d2c5bc6d35e252742224ab0c1e8fcb"),
    ),
    "flowers102": KnownSet(
        "Flowers102", "flowers-102", "345 MB", flowers102, "flowers-102, 102flowers.tgz with the two .mat files", None,
        ("102flowers.tgz", "52808999861908f626f3c1f4e79d11fa"),
    ),
}  # fmt: skip
# what `_target_` names
CIFAR10, MNIST, FashionMNIST, CelebA, Flowers102 = (partial(TorchvisionSet, name) for name in SETS)
