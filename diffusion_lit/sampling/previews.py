"""Grids of samples, and GIFs of how they are denoised."""

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor

from diffusion_lit.diffusion.codecs import Codec
from diffusion_lit.imaging.grids import add_checkerboard, draw_grid, hstack_images, save_gif
from diffusion_lit.imaging.rows import choose_rows, describe_rows
from diffusion_lit.sampling.labels import Label, format_label, row_names
from diffusion_lit.system.files import write_atomically

ROWS, COLUMNS = 16, 8  # of a preview at most
MAX_FRAMES = 40  # of its GIF
CLASS_MS = 1000  # how long a GIF of the classes shows each, milliseconds


RowKey = TypeVar("RowKey")  # a class, or anything else that a row of a grid has in common


def preview_labels(num_classes: int, prompts: Sequence[str] = ()) -> list[Label]:
    """Return eight labels of each of at most sixteen classes or prompts, evenly chosen, or 64 zeros without either."""
    rows: list[Label] = [prompts[k] if prompts else k for k in choose_rows(len(prompts) or num_classes, ROWS)]
    return labels_in_rows(rows, COLUMNS * len(rows)) if rows else [0] * 64


def labels_in_rows(classes: Sequence[RowKey], num_images: int) -> list[RowKey]:
    """Return equal runs of each class, in order; the first are longer by one if there is a remainder.

    >>> labels_in_rows([3, 8], 5)
    [3, 3, 3, 8, 8]
    """
    share, extra = divmod(num_images, len(classes))
    return [label for k, label in enumerate(classes) for _ in range(share + (k < extra))]


def draw_class_grid(images: Tensor, labels: Sequence[Label], names: Sequence[str], title: str = "") -> Image.Image:
    """Draw images uint8 (N, C, H, W), a row for each class or blend, or as a square without class names."""
    if not names:
        return draw_grid(images, columns=max(1, round(len(images) ** 0.5)), title=title)
    return draw_row_grid(images, labels, [format_label(label, names) for label in dict.fromkeys(labels)], title)


def draw_row_grid(images: Tensor, rows: Sequence[Hashable], names: Sequence[str], title: str = "") -> Image.Image:
    """Draw images uint8 (N, C, H, W), those of equal `rows` in one row after its name."""
    parts = [images[torch.tensor([other == row for other in rows])] for row in dict.fromkeys(rows)]
    columns = max(map(len, parts))
    blank = torch.full((1, *images.shape[1:]), 255, dtype=torch.uint8)
    filled = [torch.cat([part, blank.expand(columns - len(part), -1, -1, -1)]) for part in parts]
    return draw_grid(torch.cat(filled), columns, names, title)


def draw_class_pages(images: Tensor, labels: Sequence[Label], names: Sequence[str]) -> list[tuple[str, Image.Image]]:
    """Return for each class or blend its name, and its images uint8 (N, C, H, W) as a square."""
    pages = []
    for label in dict.fromkeys(labels):
        is_member, name = torch.tensor([other == label for other in labels]), format_label(label, names)
        pages.append((name, draw_class_grid(images[is_member], (), (), title=name)))
    return pages


def recorded_images(labels: Sequence[Label], class_names: Sequence[str]) -> list[int]:
    """Return the indices of the images in a preview's GIF: the first of each class, else the first eight."""
    return [labels.index(label) for label in dict.fromkeys(labels)] if class_names else list(range(COLUMNS))


class FrameRecorder:
    """Records some images while they are denoised, as `on_step` of `generate`.

    Args:
        images: indices of the N images to record.
        steps: number of network evaluations.
        codec: decodes x to images.

    Attributes:
        steps: indices of the recorded evaluations, at most `MAX_FRAMES`, evenly spread, the last
            one among them.
        frames: uint8 (F, N, C, H, W); 0 for images that another process generates.
    """

    def __init__(self, images: Sequence[int], steps: int, codec: Codec):
        self.images, self.codec = images, codec
        self.steps = torch.linspace(0, steps - 1, min(steps, MAX_FRAMES)).round().int().tolist()
        self.frames = torch.zeros(len(self.steps), len(images), *codec.image_shape, dtype=torch.uint8)

    def __call__(self, first: int, k: int, x: Tensor) -> None:
        if k not in self.steps:
            return
        for n, image in enumerate(self.images):
            if first <= image < first + len(x):
                self.frames[self.steps.index(k), n] = self.codec.decode(x[image - first])


def draw_frames(recorder: FrameRecorder, labels: Sequence[Label], class_names: Sequence[str]) -> list[Image.Image]:
    """Draw each frame with a row for each class, or in one row without classes."""
    if not class_names:
        return [draw_grid(frame, columns=len(frame)) for frame in recorder.frames]
    return [draw_class_grid(frame, [labels[k] for k in recorder.images], class_names) for frame in recorder.frames]


def save_preview(grids: Sequence[Image.Image], frames: Sequence[Image.Image], path: Path) -> Path:
    """Write the grids side by side as a PNG and the frames as a GIF of the same stem; return the GIF's path.

    Both are written atomically, the PNG last: if it exists, the preview is
    complete.
    """
    gif = path.with_suffix(".gif")
    with write_atomically(gif) as unfinished:
        save_gif(frames, unfinished)
    with write_atomically(path) as unfinished:
        add_checkerboard(hstack_images(grids)).save(unfinished, format="PNG")
    return gif


def format_caption(config: dict, networks: Sequence[str], evaluations: int) -> str:
    """Return the caption of a preview.

    "rows: cat, dog; EMA | raw; seed 0; ddim, 25 steps; guidance scale 1", networks from left to
    right.
    """
    names = row_names(config)
    shown = ", ".join(names[k] for k in choose_rows(len(names), ROWS))
    rows = [f"rows{describe_rows(len(names), ROWS)}: {shown}"] if names else []
    guidance = [f"guidance scale {config['guidance_scale']:g}"] if names else []
    sampler = f"{config['sampler']['name']}, {format_steps(config['sampler']['steps'], evaluations)}"
    return "; ".join([*rows, " | ".join(networks), f"seed {config['seed']}", sampler, *guidance])


def format_steps(steps: int | None, evaluations: int) -> str:
    """Return the number of steps, and that of network evaluations where it differs.

    >>> format_steps(25, 25), format_steps(None, 1000), format_steps(18, 35)
    ('25 steps', '1000 steps', '18 steps, 35 NFE')
    """
    steps = steps or evaluations
    nfe = f", {evaluations} NFE" * (steps != evaluations)
    return f"{steps} step{'s' * (steps != 1)}{nfe}"
