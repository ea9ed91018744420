"""Image sets written to disk."""

import io
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diffusion_lit.config.compose import compose_configs, resolve_data
from diffusion_lit.data import streaming
from diffusion_lit.data.datamodule import ImageDataModule, datamodule_from_config
from diffusion_lit.data.sources import row_groups
from diffusion_lit.data.sources.folder import Split
from diffusion_lit.system.errors import Exit, UserError

FILES = (250, 130, 77)  # rows
STREAMED = ["data.image_size=4", "data.flip=0", "data.streaming=every_epoch"]


def make_table(numbers: range) -> datasets.Dataset:
    """Picture k has the colour (k // 256, k % 256, 7) and the class k % 3."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    return datasets.Dataset.from_dict(
        {"image": [{"bytes": png(k), "path": None} for k in numbers], "label": [k % 3 for k in numbers]},
        features=features,
    )


def png(k: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (k // 256, k % 256, 7)).save(file, "PNG")
    return file.getvalue()


def write_parquet(folder: Path, split: str, numbers: range, sizes=FILES, group: int = 20) -> Path:
    folder.mkdir(exist_ok=True)
    start = numbers.start
    for k, size in enumerate(sizes):
        file = folder / f"{split}-{k:05}-of-{len(sizes):05}.parquet"
        make_table(range(start, start + size)).to_parquet(file, batch_size=group)
        start += size
    return folder


def make_data(*words: object) -> ImageDataModule:
    config, source = resolve_data(
        compose_configs("train", ["experiment=none", "data.image_size=8", *map(str, words)])[0]
    )
    source.splits()  # as the check does
    data = datamodule_from_config(source, config["data"], 0, 4)
    data.setup()
    return data


def data_error(load: Callable[..., ImageDataModule], *overrides: object) -> str:
    """Return the message of the error, exit code 3, that `load` ends with."""
    with pytest.raises(UserError) as caught:
        load(*overrides)
    assert caught.value.exit_code == Exit.DATA
    return str(caught.value)


def make_digit_arrays() -> dict[str, np.ndarray]:
    """Return the arrays of an .npz of MNIST as Keras has it, with 20 training and 8 test images of noise."""
    rng = np.random.default_rng(0)
    return {
        "x_train": rng.integers(0, 256, (20, 28, 28), dtype=np.uint8),
        "y_train": np.arange(20, dtype=np.uint8) % 10,
        "x_test": rng.integers(0, 256, (8, 28, 28), dtype=np.uint8),
        "y_test": np.arange(8, dtype=np.uint8),
    }


def shrink_streams(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Make the windows and waits of streamed data small; tables of `datasets` are cached in `folder`."""
    monkeypatch.setattr(streaming, "WINDOW", 64)
    monkeypatch.setattr(streaming, "RETRY_WAITS", (0, 0))
    monkeypatch.setattr(row_groups, "READ_ROWS", 8)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder)


def make_hub_data(path: Path, *words: str) -> ImageDataModule:
    return make_data("data=huggingface", f"data.path={path}", *words)


def write_table(path: Path, columns: dict, name: str = "train") -> Path:
    path.mkdir(exist_ok=True, parents=True)
    pq.write_table(pa.table(columns), path / f"{name}.parquet")
    return path


def make_shades(n: int, first: int = 0) -> list[bytes]:
    """Return files of gray images, each in its own shade."""
    found = []
    for k in range(first, first + n):
        file = io.BytesIO()
        Image.new("L", (2, 2), k % 256).save(file, "PNG")
        found.append(file.getvalue())
    return found


def read_shades(store) -> list[int]:
    return store.images[:, 0, 0, 0].tolist()


def write_split(folder: Path, count: int) -> Split:
    """Write gray images of noise, 8x8, and return them as a split whose labels are their numbers."""
    folder.mkdir()
    dice = np.random.default_rng(0)
    for k in range(count):
        Image.fromarray(dice.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / f"{k:04}.png")
    return Split(sorted(folder.iterdir()), np.arange(count))


def write_streams(home: Path) -> dict[str, Path]:
    """Write the same table as parquet files of several row groups, as one of one group, and by `save_to_disk`."""
    count = sum(FILES)
    make_table(range(count)).save_to_disk(home / "saved")
    return {
        "parquet": write_parquet(home / "parquet", "train", range(count)),
        "one large group": write_parquet(home / "large", "train", range(count), (count,), count),
        "saved": home / "saved",
    }
