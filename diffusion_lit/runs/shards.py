"""Generate many images in shards, shared by every process that is started with the same overrides.

<out>/plan.json             what is generated, with which weights
<out>/shards/00007.npz      a number of complete generation batches; removed once images.npy exists
<out>/images.npy labels.npy grid.png manifest.json    all images; the manifest is written last
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
from PIL import Image
from torch import Tensor

from diffusion_lit.diffusion.seeds import Seed
from diffusion_lit.evaluation.features import BATCH, FeatureExtractor, digest_tensors
from diffusion_lit.imaging.grids import add_checkerboard
from diffusion_lit.imaging.rows import choose_rows, describe_rows
from diffusion_lit.imaging.skins import render_images
from diffusion_lit.runs import shared_work
from diffusion_lit.runs.load import TrainedModel, generate_with_progress
from diffusion_lit.sampling.labels import Label, row_names
from diffusion_lit.sampling.previews import COLUMNS, ROWS, draw_class_grid
from diffusion_lit.system.console import progress_bar
from diffusion_lit.system.files import write_atomically
from diffusion_lit.system.platform import sync_folder

log = logging.getLogger(__name__)
FEATURE_CHUNK = 8 * BATCH  # images of a task: complete batches, so that features have the same bits as in one process


class ShardRequest(NamedTuple):
    """Image k has `labels[k]` and `seeds[k]`. `settings` are written to the manifest."""

    labels: Sequence[Label]
    seeds: Sequence[Seed]
    shards: int  # about how many
    settings: dict


# ------------------------------------------------------------------------------------------ images


def generate_in_shards(model: TrainedModel, request: ShardRequest, out: Path) -> dict:
    """Generate images into `out` together with all processes that have the same request.

    Continues with the shards that are there. A shard consists of complete
    generation batches, so its images have the same bits as those of one process.

    Returns:
        The manifest, when all images are there.

    Raises:
        UserError: exit 5 if `out` holds the shards of another request.
    """
    labels, seeds, batch = request.labels, request.seeds, model.sampler.batch_size
    size = -(-len(seeds) // (request.shards * batch)) * batch
    parts = [slice(start, start + size) for start in range(0, len(seeds), size)]
    shared_work.claim_folder(make_plan(model, request, size), out)
    files = [out / "shards" / f"{k:05d}.npz" for k in range(len(parts))]
    steps = model.count_steps(size)  # of a shard

    def is_complete(_: int = 0) -> bool:
        return (out / "manifest.json").exists() and (out / "images.npy").exists()

    def advance(*step: object) -> None:
        bar.advance(task)

    def generate_shard(k: int) -> None:
        part = parts[k]
        images, nfe, seconds = generate_with_progress(model, labels[part], seeds[part], advance, show_progress=False)
        shared_work.save_arrays(files[k], images=images.permute(0, 2, 3, 1).numpy(), nfe=nfe, seconds=seconds)

    def report(done: int) -> None:
        bar.update(task, completed=done * steps)
        bar.advance(task, 0)

    def is_generated(k: int) -> bool:
        return files[k].exists() or is_complete()  # in this order: shards are removed once the images are complete

    def generate_all() -> None:
        shared_work.share_work(out / ".shards.lock", len(files), is_generated, generate_shard, report)

    def merge(_: int) -> None:
        shared_work.recreate_damaged(files, generate_all, log.warning, is_complete)
        try:
            _merge_shards(files, model, request, out)
        except FileNotFoundError:
            if not is_complete():  # without locks another process may have merged and removed them
                raise

    shared_work.share_work(out / ".lock", 1, lambda _: not is_complete() or _is_intact(out), lambda _: _discard(out))
    with progress_bar("sampling") as bar:
        task = bar.add_task("", total=len(files) * steps)
        generate_all()
    shared_work.share_work(out / ".lock", 1, is_complete, merge)
    sync_folder(out)
    shutil.rmtree(out / "shards", ignore_errors=True)
    return json.loads((out / "manifest.json").read_bytes())


def open_sharded_images(out: Path) -> Tensor:
    """Return the images uint8 (N, C, H, W) of a complete folder, memory-mapped."""
    return torch.from_numpy(np.load(out / "images.npy", mmap_mode="c")).permute(0, 3, 1, 2)


def make_plan(model: TrainedModel, request: ShardRequest, size: int) -> dict:
    """Return all that the bytes depend on, so that shards of other settings are never mixed in."""
    return request.settings | {
        "guide": model.guide and digest_tensors(model.guide.net.state_dict()),
        "network": digest_tensors(model.net.state_dict()),
        "device": model.device.type,
        "num_images": len(request.seeds),
        "shard_images": size,
        "labels": _digest(repr(list(request.labels)).encode()),
        "seeds": _digest(repr(list(request.seeds)).encode()),
    }


def _is_intact(out: Path) -> bool:
    """Return whether images.npy has the checksum of the manifest."""
    digest = hashlib.blake2b(digest_size=16)
    try:
        images = np.load(out / "images.npy", mmap_mode="r")
        for first in range(0, len(images), FEATURE_CHUNK):
            digest.update(np.ascontiguousarray(images[first : first + FEATURE_CHUNK]))
        return digest.hexdigest() == json.loads((out / "manifest.json").read_bytes())["blake2b"]
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return False


def _discard(out: Path) -> None:
    """Remove the images, and the features and metrics that may be those of damaged images."""
    log.warning("%s or its manifest is damaged and will be made again", out / "images.npy")
    for path in (out / "images.npy", out / "result.json"):
        path.unlink(missing_ok=True)
    for features in out.glob("features-*"):
        shutil.rmtree(features, ignore_errors=True)


def _merge_shards(files: Sequence[Path], model: TrainedModel, request: ShardRequest, out: Path) -> None:
    """Write images.npy, one shard at a time, labels.npy and the grid; the manifest last."""
    shared_work.remove_abandoned_files(out)
    channels, *size = model.codec.image_shape
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(request.seeds), *size, channels)}
    digest, entries = hashlib.blake2b(digest_size=16), []
    with write_atomically(out / "images.npy", concurrent=True) as beside, open(beside, "wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for file in files:
            shard = np.load(file)
            data = shard["images"].tobytes()
            stream.write(data)
            digest.update(data)
            numbers = {key: shard[key].item() for key in ("nfe", "seconds")}
            entries.append({"images": len(shard["images"]), "blake2b": _digest(data)} | numbers)
    with write_atomically(out / "labels.npy", concurrent=True) as beside, open(beside, "wb") as stream:
        np.save(stream, np.array(request.labels))
    _draw_grid(open_sharded_images(out), request.labels, model).save(out / "grid.png")
    manifest = request.settings | {
        "num_images": len(request.seeds),
        "nfe": entries[0]["nfe"],
        "seconds": sum(entry["seconds"] for entry in entries),  # of all processes
        "file": "images.npy",
        "blake2b": digest.hexdigest(),
        "shards": entries,
    }
    shared_work.write_json(out / "manifest.json", manifest)


def _draw_grid(images: Tensor, labels: Sequence[Label], model: TrainedModel) -> Image.Image:
    """Return a grid of eight images of each of at most sixteen classes or blends, or of 64 without classes."""
    names, chosen, title = row_names(model.config), list(range(len(labels)))[:64], ""
    if names:
        kinds = list(dict.fromkeys(labels))
        rows, title = [kinds[k] for k in choose_rows(len(kinds), ROWS)], describe_rows(len(kinds), ROWS).lstrip(", ")
        chosen = [k for row in rows for k in islice((k for k, label in enumerate(labels) if label == row), COLUMNS)]
    return add_checkerboard(
        draw_class_grid(render_images(images[chosen], model.render), [labels[k] for k in chosen], names, title)
    )


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


# ------------------------------------------------------------------------------------------ features


def extract_features_in_shards(extractor: FeatureExtractor, images: Tensor, out: Path) -> list[Path]:
    """Extract the features of all images together with the other processes, and return the files that hold them."""
    folder = out / f"features-{extractor.name}-{extractor.digest}"
    files = [folder / f"{k:05d}.npz" for k in range(-(-len(images) // FEATURE_CHUNK))]

    def extract(k: int) -> None:
        chunk = images[k * FEATURE_CHUNK : (k + 1) * FEATURE_CHUNK]
        shared_work.save_arrays(files[k], features=extractor(chunk).numpy())

    shared_work.share_work(out / ".features.lock", len(files), lambda k: files[k].exists(), extract)
    return files


def read_sharded_features(extractor: FeatureExtractor, images: Tensor, out: Path) -> Tensor:
    """Return features (N, D) of all images, the same bits as `extractor(images)`."""
    files = extract_features_in_shards(extractor, images, out)
    shared_work.recreate_damaged(files, lambda: extract_features_in_shards(extractor, images, out), log.warning)
    return torch.cat([torch.from_numpy(np.load(file)["features"]) for file in files])
