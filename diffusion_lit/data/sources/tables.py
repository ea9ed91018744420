"""Hugging Face tables: reaching for them, and which of their columns hold pictures and labels, by type."""

import io
import logging
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from diffusion_lit.system.errors import Exit, UserError

LABELS = ("label", "labels", "fine_label", "class", "target", "cls")  # usual names, the first counts
PLAIN = r"u?int\d+|(large_)?string|bool"
HUB_ID = r"[\w.-]+(/[\w.-]+)?"
ELSEWHERE = "download it elsewhere and give data.path=<folder>, or use data=image_folder"


def load_tables(path: str, name: str | None, split: str | None, streaming: bool, cache_dir: Path | None) -> dict:
    """Split name to table. Raises UserError (exit 3) with one line for whatever goes wrong."""
    import datasets

    here = Path(path).expanduser().absolute()
    if not here.exists():
        _require_on_hub(path)
    datasets.utils.logging.set_verbosity(logging.CRITICAL)  # what it raises is told below
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        if is_saved(path):
            found = _saved(datasets.load_from_disk(str(here)), path, split, streaming)
        else:
            cache = str(cache_dir / "huggingface") if cache_dir and not streaming else None
            found = datasets.load_dataset(**_place(path, name), split=split, streaming=streaming, cache_dir=cache)
    except UserError:
        raise
    except Exception as error:  # anything: datasets, the hub, pyarrow and fsspec raise each their own
        hint = "" if here.exists() else f"; {ELSEWHERE}"
        hint = "; with data.streaming=true use data.max_images" if streaming and "[" in (split or "") else hint
        raise UserError(Exit.DATA, f"data.path={path}: {short(error)}{hint}") from None
    return dict(found) if isinstance(found, dict) else {split or "train": found}


def is_saved(path: str) -> bool:
    """Whether `save_to_disk` left it."""
    here = Path(path).expanduser()
    return (here / "state.json").exists() or (here / "dataset_dict.json").exists()


def _place(path: str, name: str | None) -> dict:
    here = Path(path).expanduser().absolute()
    if here.is_file():
        return {"path": "parquet", "data_files": str(here)}
    return {"path": str(here) if here.exists() else path, "name": name}


def parquet_files(path: str, name: str | None, split: str) -> list[str]:
    """Paths, or addresses of a hub (hf://...), of the files of a split.

    Raises:
        UserError: exit 3 for a set of another kind.
    """
    import datasets
    from datasets.packaged_modules.parquet.parquet import Parquet

    try:
        builder = datasets.load_dataset_builder(**_place(path, name))
    except Exception as error:  # as above
        raise UserError(Exit.DATA, f"data.path={path}: {short(error)}") from None
    if not isinstance(builder, Parquet):
        raise UserError(
            Exit.DATA,
            f"data.streaming=every_epoch reads parquet files and what `save_to_disk` left, {path} has other files: "
            "set data.streaming=true, which reads them once and keeps the decoded pictures",
        )
    return list(builder.config.data_files[split])


def _saved(found, path: str, split: str | None, streaming: bool) -> dict:
    """Tables of a `save_to_disk` folder; there a split is only a name."""
    tables = dict(found) if isinstance(found, dict) else {"train": found}
    if split is not None and split not in tables:
        raise UserError(Exit.DATA, f"data.split={split}: {path} has {listed(tables)}")
    tables = {split: tables[split]} if split else tables
    return {key: table.to_iterable_dataset() for key, table in tables.items()} if streaming else tables


def _require_on_hub(path: str) -> None:
    """Ask the hub once: `load_dataset` would ask six times, for half a minute, before it gives up."""
    if path[0] in "./~" or not re.fullmatch(HUB_ID, path) or path.endswith((".parquet", ".arrow")):
        raise UserError(Exit.DATA, f"data.path={path}: no such file or folder")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError

    try:
        HfApi().dataset_info(path, timeout=10)
    except OfflineModeIsEnabled:
        return  # what was downloaded before may do
    except RepositoryNotFoundError:
        raise UserError(
            Exit.DATA,
            f"data.path={path}: no such folder, and no such data set on the hub (for a private one log in with "
            f"`hf auth login`); {ELSEWHERE}",
        ) from None
    except Exception as error:
        raise UserError(
            Exit.DATA,
            f"data.path={path}: no such folder, and the Hugging Face hub cannot be reached ({short(error)}); "
            f"HF_HUB_OFFLINE=1 uses what was downloaded before; or {ELSEWHERE}",
        ) from None


def short(error: Exception) -> str:
    """The first line of an error, without tokens."""
    if type(error).__name__ == "DatasetGenerationError":  # says nothing itself
        error = error.__cause__ or error
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"hf_\w+", "hf_...", lines[0])[:300]


# ------------------------------------------------------------------------------------------ columns


def image_column(asked: str, table, path: str) -> str:
    """The one column of `Image` type, else the one of {bytes, path} or binary whose first value is a picture."""
    from datasets import Image as Picture

    features = table.features
    encoded = [name for name, feature in features.items() if _is_encoded(feature)]
    typed = [name for name, feature in features.items() if isinstance(feature, Picture)]
    if asked != "auto":
        if asked in typed + encoded:
            return asked
        raise _wrong_column("image", asked, features, path)
    found = typed or _opening(encoded, table)
    if len(found) != 1:
        what = f"several columns of pictures ({listed(found)}), name one" if found else "no column of pictures; name it"
        raise UserError(Exit.DATA, f"{path} has {what} with data.image_column=...: {_described(features)}")
    return found[0]


def label_column(asked: str, features, path: str) -> str | None:
    """The ClassLabel column, else an integer or string column with a usual name; None: no classes."""
    from datasets import ClassLabel

    classes = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    plain = [name for name, feature in features.items() if re.fullmatch(PLAIN, getattr(feature, "dtype", None) or "")]
    if asked == "none":
        return None
    if asked != "auto":
        if asked in classes + plain:
            return asked
        raise _wrong_column("label", asked, features, path)
    if len(classes) == 1:
        return classes[0]
    usual = [name for name in LABELS if name in (classes or plain)]
    if classes and not usual:
        raise UserError(
            Exit.DATA,
            f"{path} has several columns of classes, {listed(classes)}: name one with data.label_column=..., "
            "or none to train without classes",
        )
    return usual[0] if usual else None


def class_values(table, label: str | None, path: str) -> tuple[list, list[str]]:
    """Label values and class names, by class. A stream must have them declared; nothing is read of it."""
    from datasets import ClassLabel, Dataset

    if label is None:
        return [], []
    feature = table.features[label]
    if isinstance(feature, ClassLabel):
        return list(range(feature.num_classes)), list(feature.names or map(str, range(feature.num_classes)))
    if not isinstance(table, Dataset):
        raise UserError(
            Exit.DATA,
            f"{path}: how many classes column {label} ({feature.dtype}) has is not known before it is read; "
            "set data.label_column=none to train without classes, or data.streaming=false",
        )
    column = table.select_columns([label]).with_format("arrow")[:].column(0)
    values = sorted(value for value in column.unique().to_pylist() if value is not None and value != -1)
    return values, [str(value) for value in values]


def undecoded(table, image: str, label: str | None = None):
    """The table with these columns only, the pictures as bytes or paths."""
    from datasets import Image as Picture

    table = table.select_columns([image, label] if label else [image])
    typed = isinstance(table.features[image], Picture)
    return table.cast_column(image, Picture(decode=False)) if typed else table


def _wrong_column(kind: str, name: str, features, path: str) -> UserError:
    """Return the error of a column of images or labels that is not there, or holds something else."""
    holds, hint = {"image": ("pictures", ""), "label": ("classes", "; none trains without classes")}[kind]
    why = f"holds no {holds}" if name in features else "no such column"
    where = f"data.{kind}_column={name}: {why} in {path}"
    return UserError(Exit.DATA, f"{where}, which has {_described(features)}{hint}")


def listed(names: Iterable[str], most: int = 10) -> str:
    """Return the first names, and how many more there are."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _is_encoded(feature) -> bool:
    is_struct = isinstance(feature, dict) and "bytes" in feature
    return is_struct or getattr(feature, "dtype", None) in ("binary", "large_binary")


def _opening(names: list[str], table) -> list[str]:
    """Those of the columns whose first value is a picture; others may be sounds. Of a stream nothing is read."""
    from datasets import Dataset

    if not names or not isinstance(table, Dataset) or not len(table):
        return names
    first = table.select_columns(names)[0]
    return [name for name in names if _opens(first[name])]


def _opens(value: dict | bytes | None) -> bool:
    data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    try:
        Image.open(io.BytesIO(data) if data is not None else path).close()
    except Exception:  # as many kinds as there are formats
        return False
    return True


def _described(features) -> str:
    kinds = {name: getattr(feature, "_type", None) or type(feature).__name__ for name, feature in features.items()}
    kinds |= {name: feature.dtype for name, feature in features.items() if kinds[name] == "Value"}
    return listed(f"{name} ({kind})" for name, kind in kinds.items())
