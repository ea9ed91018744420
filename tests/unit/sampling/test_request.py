"""The images that `sample` generates: which seeds are drawn, and which rows their grid has."""

from types import SimpleNamespace

import numpy as np
import torch

from diffusion_lit.diffusion.seeds import InterpolatedSeed, image_seeds
from diffusion_lit.imaging.grids import GRID_GAP
from diffusion_lit.sampling import request
from diffusion_lit.sampling.request import draw_requests, make_requests
from tests.cases import each

SIDE = 64  # px, so that a grid enlarges nothing
NAMES = ["a", "b", "c", "d"]


def settings(**changes: object) -> SimpleNamespace:
    plain = {"num_images": 4, "images_per_class": None, "interpolate": False, "same_noise": False, "seeds": None}
    return SimpleNamespace(**plain | {"seed": 3, "seed_mix": 0.0} | changes)


@each("same_noise", [False, True])
def test_the_next_seed_is_drawn_for_a_mix_alone(monkeypatch, same_noise):
    drawn = []
    for name in ("image_seeds", "column_seeds"):
        draw = getattr(request, name)
        monkeypatch.setattr(request, name, lambda seed, *rest, draw=draw: drawn.append(seed) or draw(seed, *rest))
    plain = make_requests(settings(same_noise=same_noise), [0], 1)
    assert drawn == [3]
    mixed = make_requests(settings(same_noise=same_noise, seed_mix=0.25), [0], 1)
    assert sorted(drawn) == [3, 3, 4]
    assert [one.seed for one in plain] == image_seeds(3, 4)
    assert [one.seed for one in mixed] == [
        InterpolatedSeed(*pair, 0.25) for pair in zip(image_seeds(3, 4), image_seeds(4, 4), strict=True)
    ]


@each(
    ("changes", "names", "rows", "columns"),
    [
        ({}, [], 2, 2),  # one row without a name is a square
        ({"seeds": [3, 8]}, [], 1, 4),
        ({"seed_mix": 0.5}, [], 2, 2),
        ({"seeds": [3, 8], "num_images": 1}, [], 1, 1),
        ({"seeds": [3, 8]}, NAMES, 4, 1),  # one image per row
        ({"seeds": [3, 8], "num_images": 12}, NAMES, 4, 3),
        ({"interpolate": True}, NAMES, 1, 4),
    ],
)
def test_the_grid_has_the_rows_of_the_images(changes, names, rows, columns):
    requests = make_requests(settings(**changes), list(range(len(names))), len(names))
    images = torch.zeros(len(requests), 1, SIDE, SIDE, dtype=torch.uint8)
    grid = np.asarray(draw_requests(images, requests, names, None, "none"))
    is_image = grid[:, -GRID_GAP - columns * (SIDE + GRID_GAP) :] == 0  # without the names of rows
    assert is_image.any(axis=0).sum() == columns * SIDE
    assert is_image.any(axis=1).sum() == rows * SIDE
    assert is_image.sum() == len(requests) * SIDE**2
