"""A grid of samples and a film of how they came about: which images they hold, and how they look."""

from collections.abc import Hashable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from diffusion_lit.diffusion.codecs import Codec
from diffusion_lit.imaging.grids import beside, grid, on_checkerboard, save_gif
from diffusion_lit.sampling.labels import Label, name_of
from diffusion_lit.system.files import write_atomically

ROWS, COLUMNS = 16, 8  # of a preview at most
FRAMES = 40  # of its film at most
CLASS_MS = 1000  # that a GIF of the classes shows each


def preview_labels(num_classes: int) -> list[int]:
    """Labels of a preview: a row of eight for each class (the first sixteen); without classes 64 images."""
    return rows_of_classes(range(min(num_classes, ROWS)), COLUMNS * min(num_classes, ROWS)) if num_classes else [0] * 64


def rows_of_classes(classes: Sequence[Label], num_images: int) -> list[Label]:
    """Labels for one row per class: equal runs in the order of `classes`, the first ones longer if need be.

    >>> rows_of_classes([3, 8], 5)
    [3, 3, 3, 8, 8]
    """
    share, extra = divmod(num_images, len(classes))
    return [label for k, label in enumerate(classes) for _ in range(share + (k < extra))]


def class_grid(images: Tensor, labels: Sequence[Label], class_names: Sequence[str], title: str = "") -> Image.Image:
    """uint8 (N, C, H, W) as one picture: a row for each class or blend, in order, or a square of unlabelled images."""
    if not class_names:
        return grid(images, columns=max(1, round(len(images) ** 0.5)), title=title)
    return grid_of_rows(images, labels, [name_of(label, class_names) for label in dict.fromkeys(labels)], title)


def grid_of_rows(images: Tensor, rows: Sequence[Hashable], names: Sequence[str], title: str = "") -> Image.Image:
    """uint8 (N, C, H, W) as one picture: images of equal `rows` in a row, in order, with its name in front."""
    parts = [images[torch.tensor([other == row for other in rows])] for row in dict.fromkeys(rows)]
    columns = max(map(len, parts))
    blank = torch.full((1, *images.shape[1:]), 255, dtype=torch.uint8)
    filled = [torch.cat([part, blank.expand(columns - len(part), -1, -1, -1)]) for part in parts]
    return grid(torch.cat(filled), columns, names, title)


def class_pages(images: Tensor, labels: Sequence[Label], class_names: Sequence[str]) -> list[tuple[str, Image.Image]]:
    """The images of each class or blend, in order, as a square with its name above, and that name."""
    pages = []
    for label in dict.fromkeys(labels):
        of_label, name = images[torch.tensor([other == label for other in labels])], name_of(label, class_names)
        pages.append((name, class_grid(of_label, (), (), title=name)))
    return pages


def filmed_images(labels: Sequence[int], class_names: Sequence[str]) -> list[int]:
    """Which images of a preview are filmed: the first of each class, or without classes the first eight."""
    return [labels.index(label) for label in dict.fromkeys(labels)] if class_names else list(range(COLUMNS))


class Film:
    """Some images on their way from noise, as `on_step` of `generate`.

    `frames` is uint8 (F, N, C, H, W): the N images asked for after at most `FRAMES` of the steps, evenly spread, the
    last step among them. It is 0 for images that are made elsewhere.
    """

    def __init__(self, images: Sequence[int], steps: int, codec: Codec):
        self.images, self.codec = images, codec
        self.steps = torch.linspace(0, steps - 1, min(steps, FRAMES)).round().int().tolist()
        self.frames = torch.zeros(len(self.steps), len(images), *codec.image_shape, dtype=torch.uint8)

    def __call__(self, first: int, k: int, x: Tensor) -> None:
        if k not in self.steps:
            return
        for n, image in enumerate(self.images):
            if first <= image < first + len(x):
                self.frames[self.steps.index(k), n] = self.codec.decode(x[image - first])


def film_pictures(film: Film, labels: Sequence[int], class_names: Sequence[str]) -> list[Image.Image]:
    """The frames as pictures: a row for each class, or all in one row."""
    if not class_names:
        return [grid(frame, columns=len(frame)) for frame in film.frames]
    return [class_grid(frame, [labels[k] for k in film.images], class_names) for frame in film.frames]


def save_preview(grids: Sequence[Image.Image], frames: Sequence[Image.Image], path: Path) -> Path:
    """The grids beside each other as a PNG, and the film as a GIF beside it, whose path is returned.

    Each is moved in place when it is whole, the PNG last: where there is one, the preview is complete.
    """
    moving = path.with_suffix(".gif")
    with write_atomically(moving) as unfinished:
        save_gif(frames, unfinished)
    with write_atomically(path) as unfinished:
        on_checkerboard(beside(grids)).save(unfinished, format="PNG")
    return moving


def caption(config: dict, networks: Sequence[str], evaluations: int) -> str:
    """What a preview shows: rows, networks from left to right, seed, sampler, guidance scale.

    "rows: cat, dog; EMA | raw; seed 0; ddim, 25 steps; guidance scale 1"
    """
    names = config["data"]["class_names"]
    rows = [f"rows: {', '.join(names[:ROWS])}"] if names else []
    guidance = [f"guidance scale {config['guidance_scale']:g}"] if names else []
    sampler = f"{config['sampler']['name']}, {steps_told(config['sampler']['steps'], evaluations)}"
    return "; ".join([*rows, " | ".join(networks), f"seed {config['seed']}", sampler, *guidance])


def steps_told(steps: int | None, evaluations: int) -> str:
    """>>> steps_told(25, 25), steps_told(None, 1000), steps_told(18, 35)
    ('25 steps', '1000 steps', '18 steps, 35 NFE')
    """
    steps = steps or evaluations
    nfe = f", {evaluations} NFE" * (steps != evaluations)
    return f"{steps} step{'s' * (steps != 1)}{nfe}"
