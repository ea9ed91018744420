"""Write the output folder of `sample`: numbered PNGs, grids, GIFs, an array, and a manifest of their origin."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

from diffusion_lit.config.secrets import hide_paths
from diffusion_lit.data.originals import Originals, fingerprint_file
from diffusion_lit.imaging.grids import add_checkerboard, save_gif, to_pil
from diffusion_lit.imaging.skins import render_images
from diffusion_lit.runs import checkpoints, shards, shared_work
from diffusion_lit.runs.load import TrainedModel, describe_sampling, generate_with_progress
from diffusion_lit.sampling.editing import Edit
from diffusion_lit.sampling.generate import OnStep
from diffusion_lit.sampling.labels import format_label, is_prompt_blend, nonzero_shares, row_names
from diffusion_lit.sampling.previews import CLASS_MS, draw_class_pages
from diffusion_lit.sampling.request import ImageRequest, draw_requests
from diffusion_lit.system.console import progress_bar
from diffusion_lit.system.files import to_file_name, write_text_atomically


def describe_request(
    model: TrainedModel,
    requests: list[ImageRequest],
    config: DictConfig,
    originals: Originals | None,
    edit: Edit | None,
) -> dict:
    """Return all that the bytes of the images depend on."""
    settings = describe_sampling(model, config) | {"format": config.format}
    settings |= {"edit": describe_edit(originals, edit) if originals else None}
    labels, seeds = [request.label for request in requests], [request.seed for request in requests]
    return shards.make_plan(model, shards.ShardRequest(labels, seeds, 1, settings), model.sampler.batch_size)


def generate_batches(
    model: TrainedModel, requests: list[ImageRequest], folder: Path, on_step: OnStep, edit: Edit | None
) -> tuple[Tensor, int, float]:
    """Generate images, and save each batch in a folder, from which a process that was killed is continued.

    Returns:
        x float32 (N, C, H, W), how many of them were generated now, and the seconds
        that took.
    """
    size, batches, count, total = model.sampler.batch_size, [], 0, 1e-9
    with progress_bar("sampling") as bar:
        task = bar.add_task("", total=model.count_steps(len(requests), edit))
        for first in range(0, len(requests), size):
            members = range(first, min(first + size, len(requests)))
            file = folder / f"{first:08d}.npz"
            if checkpoints.find_damage(file) is None:
                batches.append(torch.from_numpy(np.load(file)["x"]))
                bar.advance(task, model.count_steps(len(members), edit))
                continue

            def advance(start: int, k: int, x: Tensor, first: int = first) -> None:
                bar.advance(task)
                on_step(first + start, k, x)

            labels, seeds = [requests[k].label for k in members], [requests[k].seed for k in members]
            part = edit and edit.select(members, edit.x0.device)
            x, _, seconds = generate_with_progress(model, labels, seeds, advance, part, False, decode=False)
            shared_work.save_arrays(file, x=x.numpy())
            batches.append(x)
            count, total = count + len(x), total + seconds
    return torch.cat(batches), count, total


def write_samples(
    out: Path,
    model: TrainedModel,
    requests: list[ImageRequest],
    x: Tensor,
    frames: Tensor,
    config: DictConfig,
    originals: Originals | None = None,
    edit: Edit | None = None,
) -> None:
    """Write PNGs, grids, GIFs and arrays as the configuration requests; the manifest last.

    Args:
        out: an empty folder.
        model: the model.
        requests: class and seed of each image.
        x: the images as the network makes them, float32 (N, C, H, W).
        frames: uint8 (F, N, C, H, W), the images during denoising.
        config: of `conf/sample.yaml`.
        originals: images that were edited.
        edit: how they were edited.
    """
    names, render, images = row_names(model.config), model.render, model.codec.decode(x)
    value_range = model.config["data"].get("value_range")
    values = to_value_range(x, value_range) if config.format != "png" else None
    draw = partial(draw_requests, requests=requests, class_names=names, originals=originals, render=render)
    entries = []
    for k, (request, image) in enumerate(zip(requests, images, strict=True)):
        entries.append({"file": f"{k:05d}.png", **describe_image(request, names, originals)})
        drawn = Image.fromarray(values[k, 0].round().astype(np.uint16)) if config.format == "png16" else to_pil(image)
        drawn.save(out / entries[k]["file"])
    add_checkerboard(draw(images)).save(out / "grid.png")
    if config.per_class:
        pages = draw_class_pages(render_images(images, render), [request.label for request in requests], names)
        for k, (name, page) in enumerate(pages):
            add_checkerboard(page).save(out / f"grid_{k:03d}_{to_file_name(name)}.png")
        save_gif([page for _, page in pages], out / "classes.gif", frame_ms=CLASS_MS, hold_ms=CLASS_MS)
    if config.gif:
        save_gif([draw(frame) for frame in frames], out / "denoising.gif")
    if config.npy:
        np.save(out / "images.npy", images.permute(0, 2, 3, 1).numpy())
    if config.format == "npy_float":
        np.save(out / "images.npy", values.transpose(0, 2, 3, 1))
    manifest = describe_sampling(model, config) | {"same_noise": config.same_noise, "seed_mix": config.seed_mix}
    manifest |= {"format": config.format, "value_range": value_range}
    manifest |= {"edit": describe_edit(originals, edit) if originals else None, "images": entries}
    write_text_atomically(out / "manifest.json", json.dumps(manifest, indent=2) + "\n")


def to_value_range(x: Tensor, value_range: Sequence[float] | None) -> np.ndarray:
    """Return x in [-1, 1], float32 (N, C, H, W), in the range of the training images; of 8-bit images [0, 255]."""
    low, high = value_range or (0, 255)
    return (low + (x.double().clamp(-1, 1) + 1) * ((high - low) / 2)).float().numpy()


def describe_image(request: ImageRequest, names: list[str], originals: Originals | None) -> dict:
    """Return seed, class or prompt, and original of an image for the manifest; a blend as its shares."""
    entry = {"seed": request.seed if isinstance(request.seed, int) else request.seed._asdict()}
    if originals:
        entry["init"] = hide_paths(str(originals.files[request.row[0]]))
    if isinstance(request.label, str):
        return entry | {"prompt": request.label}
    if is_prompt_blend(request.label):
        return entry | {"prompts": dict(request.label)}
    if not names:
        return entry | {"label": None, "class": None}
    is_blend = isinstance(request.label, tuple)
    entry |= {"context": nonzero_shares(request.label, names)} if is_blend else {"label": request.label}
    return entry | {"class": format_label(request.label, names)}


def describe_edit(originals: Originals, edit: Edit) -> dict:
    """Return how images were edited, and checksums of their files, for the manifest."""
    mask = {}
    if originals.mask_file:
        mask = {"mask": fingerprint_file(originals.mask_file), "repaint_repeats": edit.repaint_repeats}
    return {"strength": edit.strength, **mask, "init": [fingerprint_file(file) for file in originals.files]}
