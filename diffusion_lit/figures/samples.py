"""Figures of samples: images during denoising, by class and by sampler."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from diffusion_lit.diffusion.seeds import image_seeds
from diffusion_lit.figures.style import plot_tiles, render_figure, save_figure
from diffusion_lit.figures.subject import Subject
from diffusion_lit.imaging.grids import save_gif
from diffusion_lit.runs.load import TrainedModel
from diffusion_lit.sampling.generate import OnStep
from diffusion_lit.sampling.previews import CLASS_MS, FrameRecorder, format_steps

Advance = Callable[[], None]  # called after each step of a batch of images


def sample_rows(subject: Subject, model: TrainedModel, per_row: int, on_step: OnStep) -> Tensor:
    """Return images uint8 (rows, per_row, C, H, W), with the same seeds and labels for every model."""
    labels = [label for label in subject.rows for _ in range(per_row)]
    images = model.generate(labels, image_seeds(subject.seed, len(labels)), on_step)
    return images.unflatten(0, (len(subject.rows), per_row))


def draw_denoising(subject: Subject, columns: int, per_row: int, out: Path, advance: Advance) -> list[Path]:
    """Write denoising.png (the first image of each row over the steps), denoising.gif (all images) and classes.gif."""
    model = subject.model
    film = FrameRecorder(range(len(subject.rows) * per_row), model.evaluations, model.codec)

    def on_step(first: int, k: int, x: Tensor) -> None:
        advance()
        film(first, k, x)

    images = subject.render(sample_rows(subject, model, per_row, on_step))
    frames = subject.render(film.frames.unflatten(1, images.shape[:2]))  # (F, rows, per_row, C, H, W)
    chosen = torch.linspace(0, len(film.steps) - 1, columns).round().long().unique().tolist()
    names = [f"step {film.steps[k] + 1}" for k in chosen]
    steps = format_steps(model.sampler.steps, model.evaluations)
    title = f"Denoising: {subject.name}, {subject.config['sampler']['name']}, {steps}"
    strip = plot_tiles(frames[chosen, :, 0].transpose(0, 1), subject.row_names, names, title)
    paths = [save_figure(strip, out), out.with_suffix(".gif")]
    save_gif([render_figure(plot_tiles(frame, subject.row_names)) for frame in frames], paths[-1])
    if subject.row_names:
        paths.append(out.with_name("classes.gif"))
        rows = zip(images, subject.row_names, strict=True)
        pages = [render_figure(plot_tiles(row[None], title=name)) for row, name in rows]
        save_gif(pages, paths[-1], frame_ms=CLASS_MS, hold_ms=CLASS_MS)
    return paths


def draw_samplers(
    subject: Subject, models: Mapping[str, TrainedModel], per_row: int, out: Path, advance: Advance
) -> list[Path]:
    """Write samplers.png: training images, then samples of each sampler with the same seeds and labels."""
    title = "any training images" if subject.has_prompts else "training images"
    blocks, groups = [subject.load_originals(per_row)], [(title, per_row)]
    for name, model in models.items():
        started = time.perf_counter()
        blocks.append(sample_rows(subject, model, per_row, lambda first, k, x: advance()))
        seconds = (time.perf_counter() - started) / len(subject.rows) / per_row
        steps = format_steps(model.sampler.steps, model.evaluations)
        groups.append((f"{name}, {steps}\n{seconds:.3g} s per image", per_row))
    images = subject.render(torch.cat(blocks, dim=1))
    return [save_figure(plot_tiles(images, subject.row_names, (), f"Samplers: {subject.name}", groups), out)]
