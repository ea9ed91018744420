"""The folder that `sample` fills: numbered PNGs, grids, GIFs, an array, and a manifest of what they are from."""

import json
from functools import partial
from pathlib import Path

import numpy as np
from omegaconf import DictConfig
from torch import Tensor

from diffusion_lit.data.originals import Originals, fingerprint
from diffusion_lit.imaging.grids import on_checkerboard, save_gif, to_pil
from diffusion_lit.imaging.skins import shown
from diffusion_lit.runs.load import TrainedModel, sampling_settings
from diffusion_lit.sampling.editing import Edit
from diffusion_lit.sampling.labels import name_of, shares_of
from diffusion_lit.sampling.previews import CLASS_MS, class_pages
from diffusion_lit.sampling.request import ImageRequest, draw_requests
from diffusion_lit.system.files import write_text_atomically


def write_samples(
    out: Path,
    model: TrainedModel,
    requests: list[ImageRequest],
    images: Tensor,
    frames: Tensor,
    config: DictConfig,
    originals: Originals | None = None,
    edit: Edit | None = None,
) -> None:
    """Write images uint8 (N, C, H, W) as PNGs and what `config` requests besides; the manifest comes last.

    Args:
        requests: what each image is of, in the order of the images.
        frames: uint8 (F, N, C, H, W), the images while they are denoised.
        config: of `conf/sample.yaml`.
        originals: images that were edited by `edit`.
    """
    names, render = model.class_names, model.render
    draw = partial(draw_requests, requests=requests, class_names=names, originals=originals, render=render)
    entries = [
        {"file": f"{k:05d}.png", **describe_image(request, names, originals)} for k, request in enumerate(requests)
    ]
    for entry, image in zip(entries, images, strict=True):
        to_pil(image).save(out / entry["file"])
    on_checkerboard(draw(images)).save(out / "grid.png")
    if config.per_class:
        pages = class_pages(shown(images, render), [request.label for request in requests], names)
        for k, (name, page) in enumerate(pages):
            on_checkerboard(page).save(out / f"grid_{k:03d}_{name.replace('/', '_')[:50]}.png")
        save_gif([page for _, page in pages], out / "classes.gif", frame_ms=CLASS_MS, hold_ms=CLASS_MS)
    if config.gif:
        save_gif([draw(frame) for frame in frames], out / "denoising.gif")
    if config.npy:
        np.save(out / "images.npy", images.permute(0, 2, 3, 1).numpy())
    manifest = sampling_settings(model, config) | {
        "same_noise": config.same_noise,
        "edit": describe_edit(originals, edit) if originals else None,
        "images": entries,
    }
    write_text_atomically(out / "manifest.json", json.dumps(manifest, indent=2) + "\n")


def describe_image(request: ImageRequest, names: list[str], originals: Originals | None) -> dict:
    """Return what an image is of and from, for the manifest; a blend as its shares."""
    entry = {"seed": request.seed if isinstance(request.seed, int) else request.seed._asdict()}
    if originals:
        entry["init"] = str(originals.files[request.row[0]])
    if not names:
        return entry | {"label": None, "class": None}
    blend = isinstance(request.label, tuple)
    entry |= {"context": shares_of(request.label, names)} if blend else {"label": request.label}
    return entry | {"class": name_of(request.label, names)}


def describe_edit(originals: Originals, edit: Edit) -> dict:
    """Return what was edited and how, for the manifest."""
    mask = {"mask": fingerprint(originals.mask_file), "resample": edit.resample} if originals.mask_file else {}
    return {"strength": edit.strength, **mask, "init": [fingerprint(file) for file in originals.files]}
