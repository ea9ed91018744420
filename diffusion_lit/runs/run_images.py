"""The images of a trained run, compared with those that its checkpoint was trained on."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffusion_lit.config.compose import build_source
from diffusion_lit.data.sources.data_source import Split
from diffusion_lit.data.store import ImageStore, load_splits
from diffusion_lit.data.streaming import StreamedStore
from diffusion_lit.data.validation_split import KnownImages, describe_change, hash_image
from diffusion_lit.runs.checkpoints import load_checkpoint
from diffusion_lit.system.errors import CheckpointError


def read_data_state(checkpoint: Path | None) -> dict:
    """Return what a checkpoint knows of the images of its run, {} for other weights."""
    if checkpoint is None or checkpoint.suffix != ".ckpt":
        return {}
    return load_checkpoint(checkpoint, mmap=True).get("ImageDataModule", {})


def load_run_images(
    data: dict, checkpoint: Path | None, accept: Sequence[str] = ()
) -> tuple[ImageStore | StreamedStore, ImageStore | None]:
    """Return the training and the validation images of a run, divided as they were in training.

    Args:
        data: the `data` group of the run.
        checkpoint: a checkpoint of the run.
        accept: with "data" the images may differ from those of the run.

    Raises:
        UserError: exit 4 if the images are not those of the run.
    """
    state = read_data_state(checkpoint)
    train, val = load_splits(build_source(data), data, KnownImages.from_state(state))
    if "data" not in accept and state and (change := describe_change(state, train, val)):
        raise CheckpointError(
            f"the images are not those that {checkpoint} was trained on: {change}. Restore them, or add accept=[data] "
            "to use these."
        )
    return train, val


def choose_training_images(
    splits: dict[str, Split], split: Split, rows: Sequence[np.ndarray], count: int, state: dict
) -> np.ndarray | None:
    """Return the first `count` training images of the run among each of `rows`, int64 (len(rows) * count,).

    Only images that may be chosen are read. A short row repeats its images.

    Args:
        splits: of the source.
        split: its listed training images, before they are divided.
        rows: indices to choose from, for each row.
        count: images of a row.
        state: see `read_data_state`; {}: any image is one of training.

    Returns:
        The indices; None if an image, or the number of images, is not that of the
        run.
    """
    listed = [len(one.labels) for one in splits.values() if one.labels is not None]
    if state and listed and sum(listed) != state["images"] + state["val_images"]:
        return None
    known, chosen = KnownImages.from_state(state), []
    train, val = set(known.train.tolist()), set(known.val.tolist())
    for members in rows:
        kept = []
        for k in members if train else members[:count]:
            if len(kept) == count:
                break
            content = hash_image(split.images[k])[0] if train else None
            if train and content not in train and content not in val:
                return None
            if content is None or content in train:
                kept.append(k)
        chosen.append(np.resize(kept or np.arange(len(split.labels)), count))
    return np.concatenate(chosen)
