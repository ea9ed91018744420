"""The images that `sample` generates: the grid row, label and seed of each, and the grid itself."""

from collections import Counter
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from diffusion_lit.data.originals import Originals
from diffusion_lit.diffusion.seeds import InterpolatedSeed, Seed, column_seeds, image_seeds, mix_seeds
from diffusion_lit.imaging.skins import render_images
from diffusion_lit.sampling.labels import Label, format_label
from diffusion_lit.sampling.previews import draw_class_grid, draw_row_grid, labels_in_rows


class ImageRequest(NamedTuple):
    """An image to generate.

    Attributes:
        row: row of the grid: index of the original, and label, which is None when interpolating.
        label: class or blend.
        seed: seed of its noise.
    """

    row: tuple[int, Label | None]
    label: Label
    seed: Seed


def make_requests(config, stops: Sequence[Label], num_classes: int, num_originals: int = 1) -> list[ImageRequest]:
    """Return the images to generate, row by row.

    With `config.seeds` every row goes from image 0 of the first seed to image 0 of the
    second; with `config.interpolate` the only row goes from stop to stop, with the noise of
    image 0.

    Args:
        config: of `conf/sample.yaml`.
        stops: classes or blends; a row for each.
        num_classes: of the run.
        num_originals: images to edit; rows for each.
    """
    rows: list[tuple[int, Label | None]] = list(
        product(range(num_originals), [None] if config.interpolate else stops or [0])
    )
    n = config.images_per_class * len(rows) if config.images_per_class else config.num_images
    row_of_image = labels_in_rows(rows, n)
    sizes, images = Counter(row_of_image), []
    done: Counter = Counter()

    def draw_seeds(number: int) -> list[int]:
        return column_seeds(number, row_of_image) if config.same_noise else image_seeds(number, n)

    following = draw_seeds(config.seed + 1) if config.seed_mix else []
    seeds = mix_seeds(draw_seeds(config.seed), following, config.seed_mix)
    for row, seed in zip(row_of_image, seeds, strict=True):
        fraction = done[row] / max(1, sizes[row] - 1)
        done[row] += 1
        if config.seeds:
            first, second = (image_seeds(number, 1)[0] for number in config.seeds)
            seed = InterpolatedSeed(first, second, fraction)
        elif config.interpolate:
            seed = seeds[0]
        label = interpolate_labels(stops, fraction, num_classes) if row[1] is None else row[1]
        images.append(ImageRequest(row, label, seed))
    return images


def interpolate_labels(stops: Sequence[Label], fraction: float, num_classes: int) -> Label:
    """Return the blend at a fraction of the way through all stops, which are equally spaced.

    Prompts are blended by the weights of their words.

    >>> interpolate_labels([0, 2], 0.25, 3), interpolate_labels([0, 2, 1], 1.0, 3)
    ((0.75, 0.0, 0.25), (0.0, 1.0, 0.0))
    """
    position = fraction * (len(stops) - 1)
    k = min(int(position), len(stops) - 2)
    weight = position - k
    first, second = stops[k], stops[k + 1]
    if isinstance(first, str) and isinstance(second, str):
        ends = {0.0: first, 1.0: second}
        return ends.get(weight, ((first, 1 - weight), (second, weight)))
    classes = torch.eye(num_classes).tolist()
    blends = [stop if isinstance(stop, tuple) else classes[int(stop)] for stop in stops]
    return tuple((1 - weight) * a + weight * b for a, b in zip(blends[k], blends[k + 1], strict=True))


def draw_requests(
    images: Tensor,
    requests: Sequence[ImageRequest],
    class_names: Sequence[str],
    originals: Originals | None,
    render: str,
) -> Image.Image:
    """Draw images uint8 (N, C, H, W) as a grid, with the rows of the requests.

    In an edit a row starts with the original and what the mask keeps of it. A single row
    without a name is drawn as a square. For `render` see
    `diffusion_lit.imaging.skins.render_images`.
    """
    in_rows = [request.row for request in requests]
    rows, images = list(dict.fromkeys(in_rows)), render_images(images, render)
    fractions = {request.seed.fraction for request in requests if isinstance(request.seed, InterpolatedSeed)}
    if not (class_names or originals or len(fractions) > 1):
        return draw_class_grid(images, (), ())
    names = []
    for row in rows:
        of_row = [request.label for request in requests if request.row == row]
        ends = dict.fromkeys([of_row[0], of_row[-1]])
        names.append(" to ".join(format_label(end, class_names) for end in ends) if class_names else "")
        if originals and len(originals.files) > 1:
            names[-1] = f"{originals.files[row[0]].stem}  {names[-1]}"
    if originals:
        tiles = [torch.from_numpy(originals.images)]
        if originals.mask is not None:
            tiles.append(tiles[0].masked_fill(torch.from_numpy(originals.mask), 128))
        images = torch.cat([*[render_images(tile[row[0]][None], render) for row in rows for tile in tiles], images])
        in_rows = [row for row in rows for _ in tiles] + in_rows
    return draw_row_grid(images, in_rows, names)
