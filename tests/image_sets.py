"""Image sets written to disk."""

import io
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from diffusion_lit.config.compose import compose_configs, resolve_data
from diffusion_lit.data.datamodule import ImageDataModule, datamodule_from_config
from diffusion_lit.data.sources.folder import Split

FILES = (250, 130, 77)  # rows


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


def make_data(*words: str) -> ImageDataModule:
    config, source = resolve_data(compose_configs("train", ["experiment=none", "data.image_size=8", *words])[0])
    source.splits()  # as the check does
    data = datamodule_from_config(source, config["data"], 0, 4)
    data.setup()
    return data


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
