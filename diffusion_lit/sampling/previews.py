"""A grid of samples: which images it holds, and how it looks."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from diffusion_lit.images import grid

ROWS, COLUMNS = 16, 8  # of a preview at most


def preview_labels(num_classes: int) -> list[int]:
    """Labels of a preview: a row of eight for each class (the first sixteen); without classes 64 images."""
    return rows_of_classes(range(min(num_classes, ROWS)), COLUMNS * min(num_classes, ROWS)) if num_classes else [0] * 64


def rows_of_classes(classes: Sequence[int], num_images: int) -> list[int]:
    """Labels for one row per class: equal runs in the order of `classes`, the first ones longer if need be.

    >>> rows_of_classes([3, 8], 5)
    [3, 3, 3, 8, 8]
    """
    share, extra = divmod(num_images, len(classes))
    return [label for k, label in enumerate(classes) for _ in range(share + (k < extra))]


def class_grid(images: Tensor, labels: Sequence[int], class_names: Sequence[str], title: str = "") -> Image.Image:
    """uint8 (N, C, H, W) as one picture: a row for each class, in order, or a square of unlabelled images."""
    if not class_names:
        return grid(images, columns=max(1, round(len(images) ** 0.5)), title=title)
    classes = list(dict.fromkeys(labels))
    rows = [images[torch.tensor([label == row for label in labels])] for row in classes]
    columns = max(map(len, rows))
    blank = torch.full((1, *images.shape[1:]), 255, dtype=torch.uint8)
    filled = [torch.cat([row, blank.expand(columns - len(row), -1, -1, -1)]) for row in rows]
    return grid(torch.cat(filled), columns, [class_names[label] for label in classes], title)
