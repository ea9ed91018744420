"""Load Hugging Face tables, find by type which of their columns hold images and labels, and read the images."""

import io
import logging
import re
import sys
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from diffusion_lit.data.decoding import Encoded
from diffusion_lit.data.sources.table_labels import LABEL_COLUMNS, is_missing, sort_classes
from diffusion_lit.system.console import join_names
from diffusion_lit.system.errors import DataError

LABEL_TYPES = r"u?int\d+|float\d+|(large_)?string|bool"
HUB_DATASET = r"[\w.-]+(/[\w.-]+)?"
# what a table may fetch images from, inside archives too; other protocols of fsspec can run what a file says
REMOTE = r"(hf|https?|s3|gs|zip|tar|gzip)://|/"
DOWNLOAD_HINT = "download it elsewhere and set data.path=<folder>, or use data=image_folder"


def load_tables(path: str, name: str | None, split: str | None, streaming: bool, cache_dir: Path | None) -> dict:
    """Return the table of each split.

    Args:
        path: a file, a folder, or an id of the hub.
        name: of the configuration, where the data set has several.
        split: what `load_dataset` takes; None: all.
        streaming: whether to return an `IterableDataset`.
        cache_dir: a folder for what `datasets` keeps.

    Raises:
        DataError: with one line for any error of `datasets`.
    """
    import datasets

    local = Path(path).expanduser().absolute()
    if not local.exists():
        _require_on_hub(path)
    datasets.utils.logging.set_verbosity(logging.CRITICAL)  # errors are reported below
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        if is_saved(path):
            tables = _select_saved(datasets.load_from_disk(str(local)), path, split, streaming)
        else:
            cache = str(cache_dir / "huggingface") if cache_dir and not streaming else None
            arguments = _load_arguments(path, name)
            tables = datasets.load_dataset(**arguments, split=split, streaming=streaming, cache_dir=cache)
    except DataError:
        raise
    except Exception as error:  # datasets, the hub, pyarrow and fsspec raise their own types
        hint = "" if local.exists() else f". You can {DOWNLOAD_HINT}."
        if streaming and "[" in (split or ""):
            hint = ". Use data.max_images with data.streaming=true."
        raise DataError(f"data.path={path}: {shorten_error(error)}{hint}") from None
    return dict(tables) if isinstance(tables, dict) else {split or "train": tables}


def is_saved(path: str) -> bool:
    """Return whether the folder was written by `save_to_disk`."""
    folder = Path(path).expanduser()
    return (folder / "state.json").exists() or (folder / "dataset_dict.json").exists()


def _load_arguments(path: str, name: str | None) -> dict:
    local = Path(path).expanduser().absolute()
    if local.is_file():
        return {"path": "parquet", "data_files": str(local)}
    return {"path": str(local) if local.exists() else path, "name": name}


def parquet_files(path: str, name: str | None, split: str) -> list[str]:
    """Return paths, or hub URLs (hf://...), of the files of a split. Raise DataError if they are not parquet."""
    import datasets
    from datasets.packaged_modules.parquet.parquet import Parquet

    try:
        builder = datasets.load_dataset_builder(**_load_arguments(path, name))
    except Exception as error:  # as above
        raise DataError(f"data.path={path}: {shorten_error(error)}") from None
    if not isinstance(builder, Parquet):
        raise DataError(
            f"data.streaming=every_epoch reads parquet files and `save_to_disk` folders, but {path} has other files. "
            "Set data.streaming=true, which reads them once and keeps the decoded images."
        )
    return list(builder.config.data_files[split])


def _select_saved(tables, path: str, split: str | None, streaming: bool) -> dict:
    """Return the tables of a `save_to_disk` folder, where a split can only be a name."""
    tables = dict(tables) if isinstance(tables, dict) else {"train": tables}
    if split is not None and split not in tables:
        raise DataError(f"data.split={split}: not in {path}, which has {join_names(tables)}")
    tables = {split: tables[split]} if split else tables
    return {key: table.to_iterable_dataset() for key, table in tables.items()} if streaming else tables


def _require_on_hub(path: str) -> None:
    """Raise DataError unless the hub has the data set: `load_dataset` retries for half a minute before it fails."""
    if path[0] in "./~" or not re.fullmatch(HUB_DATASET, path) or path.endswith((".parquet", ".arrow")):
        raise DataError(f"data.path={path}: file or folder not found")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError

    try:
        HfApi().dataset_info(path, timeout=10)
    except OfflineModeIsEnabled:
        return  # it may have been downloaded before
    except RepositoryNotFoundError:
        raise DataError(
            f"data.path={path}: no such folder, and no such data set on the hub. For a private one log in with "
            f"`hf auth login`. Or {DOWNLOAD_HINT}."
        ) from None
    except Exception as error:
        raise DataError(
            f"data.path={path}: no such folder, and the Hugging Face hub cannot be reached ({shorten_error(error)}). "
            f"HF_HUB_OFFLINE=1 uses what was downloaded before. Or {DOWNLOAD_HINT}."
        ) from None


def shorten_error(error: Exception) -> str:
    """Return the first line of an error, without tokens."""
    if type(error).__name__ == "DatasetGenerationError":  # its own message gives no reason
        error = error.__cause__ or error
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"hf_\w+", "hf_...", lines[0])[:300]


# ------------------------------------------------------------------------------------------ columns


def find_image_column(requested: str, table, path: str) -> str:
    """Return the requested column, with "auto" the one of type `Image`, else the one whose first value is an image."""
    from datasets import Image as ImageFeature

    features = table.features
    encoded = [name for name, feature in features.items() if _is_encoded(feature)]
    typed = [name for name, feature in features.items() if isinstance(feature, ImageFeature)]
    if requested != "auto":
        return _check_column("image", requested, typed + encoded, features, path)
    names = typed or _columns_with_images(encoded, table)
    if len(names) != 1:
        fault = f"several columns of images ({join_names(names)})" if names else "no column of images"
        raise DataError(f"{path}: {fault}. Set data.image_column=... to one of {describe_columns(features)}.")
    return names[0]


def find_label_column(requested: str, features, path: str) -> str | None:
    """Return the requested column, with "auto" the `ClassLabel`, else one of a usual name; None without labels."""
    from datasets import ClassLabel

    classes = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    plain = find_plain_columns(features)
    if requested == "none":
        return None
    if requested != "auto":
        return _check_column("label", requested, classes + plain, features, path)
    if len(classes) == 1:
        return classes[0]
    usual = [name for name in LABEL_COLUMNS if name in (classes or plain)]
    if classes and not usual:
        raise DataError(
            f"{path}: several columns of classes. Set data.label_column to one of {join_names(classes)}, "
            "or to none to train without classes."
        )
    return usual[0] if usual else None


def read_classes(table, label: str | None, path: str) -> tuple[list, list[str]]:
    """Return label values and class names, by class. A stream must declare them, since nothing is read of it."""
    from datasets import ClassLabel, Dataset

    if label is None:
        return [], []
    feature = table.features[label]
    if isinstance(feature, ClassLabel):
        return list(range(feature.num_classes)), list(feature.names or map(str, range(feature.num_classes)))
    if not isinstance(table, Dataset):
        raise DataError(
            f"{path}: the classes of column {label} ({feature.dtype}) are not known before it is read. "
            "Set data.label_column=none to train without classes, or data.streaming=false."
        )
    column = table.select_columns([label]).with_format("arrow")[:].column(0)
    values = [value for value in column.unique().to_pylist() if not is_missing(value) and value != -1]
    values = sort_classes(values) if all(isinstance(value, str) for value in values) else sorted(values)
    are_whole = all(isinstance(value, float) and value.is_integer() for value in values)
    return values, [str(int(value) if are_whole else value) for value in values]


def read_label_candidates(table, used: Collection[str], n: int = 10_000) -> dict[str, list]:
    """Return the first n values of each column that could be labels, without the `used` ones."""
    return table.select_columns([name for name in find_plain_columns(table.features) if name not in used])[:n]


def find_plain_columns(features) -> list[str]:
    """Return the columns of numbers or text."""
    return [k for k, feature in features.items() if re.fullmatch(LABEL_TYPES, getattr(feature, "dtype", None) or "")]


def select_undecoded(table, image: str, label: str | None = None):
    """Return the table with these columns only, its images as bytes or paths."""
    from datasets import Image as ImageFeature

    table = table.select_columns([image, label] if label else [image])
    is_typed = isinstance(table.features[image], ImageFeature)
    return table.cast_column(image, ImageFeature(decode=False)) if is_typed else table


def _check_column(kind: str, name: str, allowed: list[str], features, path: str) -> str:
    """Return the name. Raise DataError for a column that is missing, or holds something else."""
    if name in allowed:
        return name
    holds, hint = {"image": ("images", ""), "label": ("classes", " none trains without classes.")}[kind]
    fault = f"holds no {holds}" if name in features else "no such column"
    raise DataError(f"data.{kind}_column={name}: {fault} in {path}, which has {describe_columns(features)}.{hint}")


def _is_encoded(feature) -> bool:
    is_struct = isinstance(feature, dict) and "bytes" in feature
    return is_struct or getattr(feature, "dtype", None) in ("binary", "large_binary")


def _columns_with_images(names: list[str], table) -> list[str]:
    """Return the columns whose first value is an image; others may be sounds. Of a stream nothing is read."""
    from datasets import Dataset

    if not names or not isinstance(table, Dataset) or not len(table):
        return names
    first = table.select_columns(names)[0]
    return [name for name in names if _is_image(first[name])]


def _is_image(value: dict | bytes | None) -> bool:
    data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    try:
        Image.open(io.BytesIO(data) if data is not None else path).close()
    except Exception:  # each format raises its own type
        return False
    return True


def describe_columns(features) -> str:
    """Return the names of the columns with their types."""
    kinds = {name: getattr(feature, "_type", None) or type(feature).__name__ for name, feature in features.items()}
    kinds |= {name: feature.dtype for name, feature in features.items() if kinds[name] == "Value"}
    return join_names(f"{name} ({kind})" for name, kind in kinds.items())


# ------------------------------------------------------------------------------------------ images


@dataclass(frozen=True)
class TableImages:
    """The images of a `datasets.Dataset`, read from disk one by one.

    Args:
        table: with one column of undecoded images.
        name: what messages call it.
    """

    table: object
    name: str

    @property
    def fingerprint(self) -> str:
        """Return the digest that `datasets` keeps of the table."""
        return self.table._fingerprint

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, k: int) -> Path | Encoded:
        (value,) = self.table[k].values()
        return make_encoded(value, f"row {k} of {self.name}")


def make_encoded(value: dict | bytes | None, name: str) -> Path | Encoded:
    """Return a value of an image column: bytes, or a path to them, local or a URL (hf://...)."""
    data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    if data is not None:
        return Encoded(name, data)
    if not path:
        raise DataError(f"{name}: no image")
    if "://" not in path:
        return Path(path)
    if not all(re.match(REMOTE, link) for link in path.split("::")):
        raise DataError(f"{name}: images are not fetched from {path[:200]}")
    return Encoded(name, partial(_fetch, path))


def _fetch(url: str) -> bytes:
    import fsspec

    with fsspec.open(url) as file:
        return file.read()
