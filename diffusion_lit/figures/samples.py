"""Figures that need a trained network to sample: on the way from noise, class by class, sampler beside sampler."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from diffusion_lit.diffusion.seeds import image_seeds
from diffusion_lit.figures.style import picture_of, save, tiles
from diffusion_lit.figures.subject import Subject
from diffusion_lit.imaging.grids import save_gif, to_uint8
from diffusion_lit.runs.build import guided
from diffusion_lit.sampling.generate import OnStep, generate
from diffusion_lit.sampling.previews import CLASS_MS, Film, steps_told
from diffusion_lit.sampling.samplers import Sampler

Advance = Callable[[], None]  # told of every evaluation for a chunk of images


def sampled(subject: Subject, sampler: Sampler, per_row: int, on_step: OnStep) -> Tensor:
    """Images uint8 (rows, per_row, C, H, W); the same seeds and labels for every sampler."""
    model = subject.model
    labels = [label for label in subject.rows for _ in range(per_row)]
    seeds = image_seeds(subject.seed, len(labels))
    images = generate(guided(model.net, model.config), model.diffusion, sampler, labels, seeds, model.shape, on_step)
    return to_uint8(images).unflatten(0, (len(subject.rows), per_row))


def evaluations_of(subject: Subject, sampler: Sampler) -> int:
    return len(sampler.build(subject.model.diffusion.table).timesteps)


def work(subject: Subject, sampler: Sampler, per_row: int) -> int:
    """Evaluations times chunks, what a progress bar counts."""
    return evaluations_of(subject, sampler) * -(-len(subject.rows) * per_row // sampler.batch_size)


def draw_denoising(subject: Subject, columns: int, per_row: int, out: Path, advance: Advance) -> list[Path]:
    """denoising.png, the first image of each row on its way; denoising.gif, all; classes.gif, class by class."""
    sampler, evaluations = subject.model.sampler, evaluations_of(subject, subject.model.sampler)
    film = Film(range(len(subject.rows) * per_row), evaluations, subject.model.shape)

    def on_step(first: int, k: int, x: Tensor) -> None:
        advance()
        film(first, k, x)

    images = subject.shown(sampled(subject, sampler, per_row, on_step))
    frames = subject.shown(film.frames.unflatten(1, (len(subject.rows), per_row)))  # (F, rows, per_row, C, H, W)
    chosen = torch.linspace(0, len(film.steps) - 1, columns).round().long().unique().tolist()
    names = [f"step {film.steps[k] + 1}" for k in chosen]
    steps = steps_told(sampler.steps, evaluations)
    title = f"Denoising: {subject.name}, {subject.config['sampler']['name']}, {steps}"
    strip = tiles(frames[chosen, :, 0].transpose(0, 1), subject.row_names, names, title)
    made = [save(strip, out), out.with_suffix(".gif")]
    save_gif([picture_of(tiles(frame, subject.row_names)) for frame in frames], made[-1])
    if subject.class_names:
        made.append(out.with_name("classes.gif"))
        pages = [picture_of(tiles(row[None], title=name)) for row, name in zip(images, subject.row_names, strict=True)]
        save_gif(pages, made[-1], frame_ms=CLASS_MS, hold_ms=CLASS_MS)
    return made


def draw_samplers(
    subject: Subject, samplers: Mapping[str, Sampler], per_row: int, out: Path, advance: Advance
) -> list[Path]:
    """samplers.png: originals beside what each sampler makes of the same seeds and labels, with steps and time."""
    blocks, groups = [subject.originals(per_row)], [("originals", per_row)]
    for name, sampler in samplers.items():
        started = time.perf_counter()
        blocks.append(sampled(subject, sampler, per_row, lambda first, k, x: advance()))
        seconds = time.perf_counter() - started
        each = seconds / len(subject.rows) / per_row
        steps = steps_told(sampler.steps, evaluations_of(subject, sampler))
        groups.append((f"{name}, {steps}\n{each:.3g} s per image", per_row))
    images = subject.shown(torch.cat(blocks, dim=1))
    return [save(tiles(images, subject.row_names, (), f"Samplers: {subject.name}", groups), out)]
