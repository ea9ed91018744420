"""The images that a command requests: the grid row, label and seed of each."""

from collections import Counter
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from diffusion_lit.data.originals import Originals
from diffusion_lit.diffusion.seeds import Between, Seed, column_seeds, image_seeds
from diffusion_lit.imaging.skins import shown
from diffusion_lit.sampling.labels import Label, name_of
from diffusion_lit.sampling.previews import class_grid, grid_of_rows, rows_of_classes


class ImageRequest(NamedTuple):
    """An image: its row is the number of the image it is an edit of, and its label, None while interpolating."""

    row: tuple[int, Label | None]
    label: Label
    seed: Seed


def make_requests(config, stops: Sequence[Label], num_classes: int, num_originals: int = 1) -> list[ImageRequest]:
    """Return the images that a configuration of `conf/sample.yaml` requests, row by row.

    There is a row for each original and each of `stops`, the classes or blends. With `seeds` every row goes from image
    0 of the first seed to image 0 of the second; with `interpolate` from stop to stop, with the noise of image 0.
    """
    rows = list(product(range(num_originals), [None] if config.interpolate else stops or [0]))
    n = config.images_per_class * len(rows) if config.images_per_class else config.num_images
    places = rows_of_classes(rows, n)
    size, done, images = Counter(places), Counter(), []
    own = column_seeds(config.seed, places) if config.same_noise else image_seeds(config.seed, n)
    for row, seed in zip(places, own, strict=True):
        share = done[row] / max(1, size[row] - 1)
        done[row] += 1
        if config.seeds:
            seed = Between(*[image_seeds(number, 1)[0] for number in config.seeds], share)
        elif config.interpolate:
            (seed,) = image_seeds(config.seed, 1)
        label = between(stops, share, num_classes) if config.interpolate else row[1]
        images.append(ImageRequest(row, label, seed))
    return images


def between(stops: Sequence[Label], share: float, num_classes: int) -> Label:
    """Return the blend at a share of the way through all stops, which are equally far apart.

    >>> between([0, 2], 0.25, 3), between([0, 2, 1], 1.0, 3)
    ((0.75, 0.0, 0.25), (0.0, 1.0, 0.0))
    """
    classes = torch.eye(num_classes).tolist()
    blends = [stop if isinstance(stop, tuple) else classes[stop] for stop in stops]
    place = share * (len(stops) - 1)
    k = min(int(place), len(stops) - 2)
    return tuple((1 - (place - k)) * a + (place - k) * b for a, b in zip(blends[k], blends[k + 1], strict=True))


def draw_requests(
    images: Tensor,
    requests: Sequence[ImageRequest],
    class_names: Sequence[str],
    originals: Originals | None,
    render: str,
) -> Image.Image:
    """Return images uint8 (N, C, H, W) as a grid, a row for each row of the requests.

    In an edit a row begins with the original and what the mask keeps of it. A single row without a name is drawn as a
    square. For `render` see `diffusion_lit.imaging.skins.shown`.
    """
    in_rows = [request.row for request in requests]
    rows, images = list(dict.fromkeys(in_rows)), shown(images, render)
    if not (class_names or originals or isinstance(requests[0].seed, Between)):
        return class_grid(images, (), ())
    names = []
    for row in rows:
        of_row = [request.label for request in requests if request.row == row]
        ends = dict.fromkeys([of_row[0], of_row[-1]])
        names.append(" to ".join(name_of(end, class_names) for end in ends) if class_names else "")
        if originals and len(originals.files) > 1:
            names[-1] = f"{originals.files[row[0]].stem}  {names[-1]}"
    if originals:
        pictures = torch.from_numpy(originals.images)
        tiles = [pictures]
        if originals.mask is not None:
            tiles.append(pictures.masked_fill(torch.from_numpy(originals.mask), 128))
        images = torch.cat([*[shown(tile[row[0]][None], render) for row in rows for tile in tiles], images])
        in_rows = [row for row in rows for _ in tiles] + in_rows
    return grid_of_rows(images, in_rows, names)
