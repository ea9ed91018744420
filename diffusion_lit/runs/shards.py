"""Many images of a trained run, generated in shards by every process that is started with the same overrides.

<out>/plan.json             what is made, of which weights
<out>/shards/00007.npz      a number of whole generation batches; gone when images.npy is there
<out>/images.npy labels.npy grid.png manifest.json    all of them; the manifest comes last
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffusion_lit.diffusion.seeds import Seed
from diffusion_lit.evaluation.features import BATCH, Extractor, digest_of
from diffusion_lit.imaging.grids import on_checkerboard
from diffusion_lit.imaging.skins import shown
from diffusion_lit.runs import shared_work
from diffusion_lit.runs.load import TrainedModel, generate_with_progress
from diffusion_lit.sampling.labels import Label
from diffusion_lit.sampling.previews import COLUMNS, ROWS, class_grid
from diffusion_lit.system.console import progress_bar
from diffusion_lit.system.files import write_atomically
from diffusion_lit.system.platform import sync_folder

log = logging.getLogger(__name__)
PART = 8 * BATCH  # images of a piece of work for an extractor: whole batches, so features have the same bits


class ShardRequest(NamedTuple):
    """Image k is of `labels[k]` from `seeds[k]`, in about `shards` shards; `settings` go into the manifest."""

    labels: Sequence[Label]
    seeds: Sequence[Seed]
    shards: int
    settings: dict


def generate_in_shards(model: TrainedModel, request: ShardRequest, out: Path) -> dict:
    """Generate images into `out` together with all processes that have the same request, or go on with what is there.

    A shard is a number of whole generation batches, so its images have the bits that one process would give them.

    Returns:
        The manifest, when all images are there.

    Raises:
        UserError: exit 5 if `out` holds the shards of another request.
    """
    labels, seeds, batch = request.labels, request.seeds, model.sampler.batch_size
    size = -(-len(seeds) // (request.shards * batch)) * batch
    parts = [slice(start, start + size) for start in range(0, len(seeds), size)]
    shared_work.claim_folder(_plan(model, request, size), out)
    files = [out / "shards" / f"{k:05d}.npz" for k in range(len(parts))]
    calls = model.count_steps(size)  # of a shard

    def complete() -> bool:
        return (out / "manifest.json").exists() and (out / "images.npy").exists()

    def make(k: int) -> None:
        part = parts[k]
        made = generate_with_progress(model, labels[part], seeds[part], lambda *step: bar.advance(task), shown=False)
        arrays = {"images": made.images.permute(0, 2, 3, 1).numpy(), "nfe": made.nfe, "seconds": made.seconds}
        shared_work.save_arrays(files[k], **arrays)

    def tell(done: int) -> None:
        bar.update(task, completed=done * calls)
        bar.advance(task, 0)

    def shards() -> None:  # the shards go when all is complete, so that is looked at after them
        shared_work.share_work(out / ".shards.lock", len(files), lambda k: files[k].exists() or complete(), make, tell)

    def merge(_: int) -> None:
        shared_work.recreate_damaged(files, shards, log.warning, complete)
        try:
            _merge(files, model, request, out)
        except FileNotFoundError:
            if not complete():  # by another process, which has removed the shards: only where there are no locks
                raise

    shared_work.share_work(out / ".lock", 1, lambda _: not complete() or _is_intact(out), lambda _: _begin_again(out))
    with progress_bar("sampling") as bar:
        task = bar.add_task("", total=len(files) * calls)
        shards()
    shared_work.share_work(out / ".lock", 1, lambda _: complete(), merge)
    sync_folder(out)
    shutil.rmtree(out / "shards", ignore_errors=True)
    return json.loads((out / "manifest.json").read_text())


def _is_intact(out: Path) -> bool:
    """Return whether images.npy has the checksum of the manifest."""
    digest = hashlib.blake2b(digest_size=16)
    try:
        images = np.load(out / "images.npy", mmap_mode="r")
        for first in range(0, len(images), PART):
            digest.update(np.ascontiguousarray(images[first : first + PART]))
        return digest.hexdigest() == json.loads((out / "manifest.json").read_text())["blake2b"]
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return False


def _begin_again(out: Path) -> None:
    log.warning("%s or its manifest is damaged: all is made again", out / "images.npy")
    for path in (out / "images.npy", out / "result.json"):  # what was measured may be of the damaged ones
        path.unlink(missing_ok=True)
    for features in out.glob("features-*"):
        shutil.rmtree(features, ignore_errors=True)


def open_sharded_images(out: Path) -> Tensor:
    """Return the images uint8 (N, C, H, W) of a complete folder, memory-mapped."""
    return torch.from_numpy(np.load(out / "images.npy", mmap_mode="c")).permute(0, 3, 1, 2)


def extract_features_in_shards(extractor: Extractor, images: Tensor, out: Path) -> list[Path]:
    """Extract the features of all images together with the other processes, and return the files that hold them."""
    home = out / f"features-{extractor.name}-{extractor.digest}"
    files = [home / f"{k:05d}.npz" for k in range(-(-len(images) // PART))]

    def make(k: int) -> None:
        shared_work.save_arrays(files[k], features=extractor(images[k * PART : (k + 1) * PART]).numpy())

    shared_work.share_work(out / ".features.lock", len(files), lambda k: files[k].exists(), make)
    return files


def read_sharded_features(extractor: Extractor, images: Tensor, out: Path) -> Tensor:
    """Return features (N, D) of all images, bit for bit those of `extractor(images)`."""
    files = extract_features_in_shards(extractor, images, out)
    shared_work.recreate_damaged(files, lambda: extract_features_in_shards(extractor, images, out), log.warning)
    return torch.cat([torch.from_numpy(np.load(file)["features"]) for file in files])


def _plan(model: TrainedModel, request: ShardRequest, size: int) -> dict:
    """Return all that the bytes depend on, so that shards of other settings or weights are never mixed in."""
    guide = model.guide and digest_of(model.guide.net.state_dict())
    return request.settings | {
        "guide": guide,
        "network": digest_of(model.net.state_dict()),
        "device": model.device.type,
        "num_images": len(request.seeds),
        "shard_images": size,
        "labels": _digest(repr(list(request.labels)).encode()),
        "seeds": _digest(repr(list(request.seeds)).encode()),
    }


def _merge(files: Sequence[Path], model: TrainedModel, request: ShardRequest, out: Path) -> None:
    """Write images.npy, a shard at a time, labels.npy and the grid; the manifest comes last."""
    shared_work.remove_left_overs(out)
    channels, *size = model.codec.image_shape
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(request.seeds), *size, channels)}
    whole, made = hashlib.blake2b(digest_size=16), []
    with write_atomically(out / "images.npy", many=True) as beside, open(beside, "wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for file in files:
            shard = np.load(file)
            data = shard["images"].tobytes()
            stream.write(data)
            whole.update(data)
            made.append({"images": len(shard["images"]), "blake2b": _digest(data)})
            made[-1] |= {key: shard[key].item() for key in ("nfe", "seconds")}
    with write_atomically(out / "labels.npy", many=True) as beside, open(beside, "wb") as stream:
        np.save(stream, np.array(request.labels))
    _grid(open_sharded_images(out), request.labels, model).save(out / "grid.png")
    manifest = request.settings | {
        "num_images": len(request.seeds),
        "nfe": made[0]["nfe"],
        "seconds": sum(shard["seconds"] for shard in made),  # of all processes together
        "file": "images.npy",
        "blake2b": whole.hexdigest(),
        "shards": made,
    }
    shared_work.write_json(out / "manifest.json", manifest)


def _grid(images: Tensor, labels: Sequence[Label], model: TrainedModel):
    """Draw the first eight of each of the first sixteen classes or blends, or 64 images without classes."""
    names, places = model.class_names, list(range(len(labels)))[:64]
    if names:
        rows = list(dict.fromkeys(labels))[:ROWS]
        places = [k for row in rows for k in islice((k for k, label in enumerate(labels) if label == row), COLUMNS)]
    return on_checkerboard(class_grid(shown(images[places], model.render), [labels[k] for k in places], names))


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
