"""Previews of a training run: a grid of samples, and a film of how they came about, made by all ranks."""

from collections.abc import Callable
from pathlib import Path

import lightning as L
import torch

from diffusion_lit.diffusion.seeds import image_seeds
from diffusion_lit.distributed import collectives
from diffusion_lit.imaging.skins import render_images
from diffusion_lit.sampling.previews import (
    FrameRecorder,
    draw_class_grid,
    draw_frames,
    format_caption,
    preview_labels,
    recorded_images,
    save_preview,
)
from diffusion_lit.sampling.samplers import Sampler
from diffusion_lit.training.callbacks.metrics_log import MetricsLog
from diffusion_lit.training.callbacks.signals import GracefulStop
from diffusion_lit.training.callbacks.step import Milestones, StepCallback
from diffusion_lit.training.collective_sampling import SamplingStopped, continue_on_error, generate_on_all_ranks
from diffusion_lit.training.loggers.run_logger import RunLogger
from diffusion_lit.training.module import DiffusionModule


def grid_of(run: Path, step: int) -> Path:
    return run / "samples" / f"step-{step:08d}.png"


class Previews(StepCallback):
    """Draws one every `sample_every` steps and after the last step, once the checkpoint of the step is saved.

    It takes long: a run that is killed in it goes on from the checkpoint, and draws the missing preview then. A failure
    to draw does not end the run.
    """

    def __init__(
        self, run: Path, config: dict, milestones: Milestones, sampler: Sampler, metrics: MetricsLog, stop: GracefulStop
    ):
        self.run, self.config, self.milestones, self.sampler = run, config, milestones, sampler
        self.metrics, self.stop = metrics, stop

    def on_train_start(self, trainer: L.Trainer, module: DiffusionModule) -> None:
        super().on_train_start(trainer, module)
        every = self.config["sample_every"]
        if self.step and every and self.step % every == 0:
            self.draw_missing(module)

    def after_step(self, trainer: L.Trainer, module: DiffusionModule) -> None:
        if self.milestones.is_due("sample_every"):
            self.draw(module)

    def draw(self, module: DiffusionModule) -> None:
        with continue_on_error(f"the preview of step {self.step}"):
            draw_preview(
                self.run, self.step, module, self.config, self.sampler,
                self.metrics.logger, self.stop.is_ending, self.metrics.bar,
            )  # fmt: skip

    def draw_missing(self, module: DiffusionModule) -> None:
        """Draw the preview of this step if a signal cut it short and the run was saved without it."""
        if not collectives.broadcast_from_rank_zero(grid_of(self.run, self.step).exists()):
            self.draw(module)


def draw_preview(
    run: Path,
    step: int,
    module: DiffusionModule,
    config: dict,
    sampler: Sampler,
    logger: RunLogger,
    is_stopped: Callable[[], bool],
    bar,
) -> None:
    """Write samples/step-*.png, a row per class of samples of the EMA and, beside them, of the raw network.

    samples/step-*.gif shows the first of each row on its way from noise, by the EMA. Writes neither if `is_stopped` on
    any rank.
    """
    names = config["data"]["class_names"]
    labels = preview_labels(len(names))
    seeds = image_seeds(config["seed"], len(labels))
    networks = {"EMA": module.ema} | ({"raw": module.net} if module.net is not module.ema else {})
    steps = len(sampler.build_scheduler(module.diffusion.process).timesteps)
    film = FrameRecorder(recorded_images(labels, names), steps, module.codec)
    calls = steps * len(networks) * -(-len(labels) // sampler.batch_size)
    task = bar.add_task("drawing the preview", total=-(-calls // collectives.world_size()), unit="preview")

    def on_step(net: torch.nn.Module, first: int, k: int, x: torch.Tensor) -> None:
        if is_stopped():
            raise SamplingStopped
        bar.advance(task)
        if net is module.ema:
            film(first, k, x)

    try:
        drawn = generate_on_all_ranks(list(networks.values()), module, config, sampler, labels, seeds, on_step)
    finally:
        bar.remove_task(task)
    film.frames = sum(collectives.all_gather(film.frames))  # each rank has filmed some of the images
    if drawn is None or collectives.rank() != 0:
        return
    render = config["data"].get("render", "none")
    film.frames = render_images(film.frames, render)
    grids = [
        draw_class_grid(render_images(images, render), labels, names, f"{name}, step {step}")
        for name, images in zip(networks, drawn, strict=True)
    ]
    grid = grid_of(run, step)
    grid.parent.mkdir(exist_ok=True)
    moving = save_preview(grids, draw_frames(film, labels, names), grid)
    captions = [format_caption(config, seen, steps) for seen in (list(networks), ["EMA on its way from noise"])]
    logger.log_file(step, "samples/grid", grid, captions[0])
    logger.log_file(step, "samples/denoising", moving, captions[1])
