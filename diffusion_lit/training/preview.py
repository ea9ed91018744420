"""The preview of a training run: a grid of samples and a film of how they came about, drawn by all ranks."""

from collections.abc import Callable
from pathlib import Path

import torch

from diffusion_lit.diffusion.seeds import image_seeds
from diffusion_lit.distributed import collectives
from diffusion_lit.imaging.skins import shown
from diffusion_lit.sampling.previews import (
    Film,
    caption,
    class_grid,
    film_pictures,
    filmed_images,
    preview_labels,
    save_preview,
)
from diffusion_lit.sampling.samplers import Sampler
from diffusion_lit.training.loggers.base import Shielded
from diffusion_lit.training.module import DiffusionModule
from diffusion_lit.training.shared import Stopped, samples


def grid_of(run: Path, step: int) -> Path:
    return run / "samples" / f"step-{step:08d}.png"


def draw_preview(
    run: Path, step: int, module: DiffusionModule, sampler: Sampler, logger: Shielded, stopped: Callable[[], bool], bar
) -> None:
    """samples/step-*.png: a row per class, the average's samples and, beside them, the raw network's.

    samples/step-*.gif: the first of each row on its way from noise, the average's. Neither if `stopped` on any rank.
    """
    config = module.config
    names = config["data"]["class_names"]
    labels = preview_labels(len(names))
    seeds = image_seeds(config["seed"], len(labels))
    networks = {"EMA": module.ema} | ({"raw": module.net} if module.net is not module.ema else {})
    steps = len(sampler.build(module.diffusion.table).timesteps)
    film = Film(filmed_images(labels, names), steps, module.shape)
    calls = steps * len(networks) * -(-len(labels) // sampler.batch_size)
    task = bar.add_task("drawing the preview", total=-(-calls // collectives.world_size()), unit="preview")

    def on_step(net: torch.nn.Module, first: int, k: int, x: torch.Tensor) -> None:
        if stopped():
            raise Stopped
        bar.advance(task)
        if net is module.ema:
            film(first, k, x)

    try:
        drawn = samples(list(networks.values()), module, sampler, labels, seeds, on_step)
    finally:
        bar.remove_task(task)
    film.frames = sum(collectives.all_gather(film.frames))  # each rank has filmed some of the images
    if drawn is None or collectives.rank() != 0:
        return
    render = config["data"].get("render", "none")  # a resumed run may be older than the key
    film.frames = shown(film.frames, render)
    pictures = [
        class_grid(shown(images, render), labels, names, f"{name}, step {step}")
        for name, images in zip(networks, drawn, strict=True)
    ]
    grid = grid_of(run, step)
    grid.parent.mkdir(exist_ok=True)
    moving = save_preview(pictures, film_pictures(film, labels, names), grid)
    words = [caption(config, seen, steps) for seen in (list(networks), ["EMA on its way from noise"])]
    logger.picture(step, "samples/grid", grid, words[0])
    logger.picture(step, "samples/denoising", moving, words[1])
