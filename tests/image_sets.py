"""Image sets written to disk."""

import io
from pathlib import Path

import datasets
from PIL import Image

from diffusion_lit.config.compose import compose_configs, resolve_data
from diffusion_lit.data.datamodule import ImageDataModule, datamodule_from_config

FILES = (250, 130, 77)  # rows


def table_of(numbers: range) -> datasets.Dataset:
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


def written(folder: Path, split: str, numbers: range, sizes=FILES, group: int = 20) -> Path:
    folder.mkdir(exist_ok=True)
    start = numbers.start
    for k, size in enumerate(sizes):
        file = folder / f"{split}-{k:05}-of-{len(sizes):05}.parquet"
        table_of(range(start, start + size)).to_parquet(file, batch_size=group)
        start += size
    return folder


def module(*words: str) -> ImageDataModule:
    config, source = resolve_data(compose_configs("train", ["experiment=none", "data.image_size=8", *words])[0])
    source.splits()  # as the check does
    data = datamodule_from_config(source, config["data"], 0, 4)
    data.setup()
    return data


def huggingface(path: Path, *words: str) -> ImageDataModule:
    return module("data=huggingface", f"data.path={path}", *words)
