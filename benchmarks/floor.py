"""What a perfect model would score, and what a visible fault costs: real images against others of the same set.

With features that are the same on every machine (`efficientnet_lite0`).
"""

import shlex
from argparse import Namespace
from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.measure import compose_config, print_table, require_packages
from benchmarks.memorization import add_noise
from diffusion_lit.data.store import load_splits
from diffusion_lit.evaluation.distances import frechet_distance, kernel_distance
from diffusion_lit.evaluation.features import collect_real_images
from diffusion_lit.evaluation.image_metrics import project_all
from diffusion_lit.evaluation.image_sets import make_reference
from diffusion_lit.evaluation.intervals import Measurement

DIGITS = "data=digits"
FEATURES, LEVELS = "efficientnet_lite0", 16


def measure_rows(data: str) -> Iterator[list[object]]:
    """Compare half of the training images with the other half, with noise, and with as many validation images."""
    config, source = compose_config(*shlex.split(data), "experiment=none")
    real = collect_real_images(*load_splits(source, config["data"]), config["data"], torch.device("cpu"))
    reference = make_reference(real, FEATURES, config["data"]["class_names"], with_classifier=False)
    n = min(len(reference.val), len(reference.training) // 2)
    train, val = reference.training.subset(2 * n), reference.val.subset(n)
    y, half = train.features[n:], train.features[:n]
    noisy = reference.extractor(add_noise(train.images[:n], LEVELS))
    for name, x in (
        ("training", half),
        (f"training, with noise of {LEVELS} levels", noisy),
        ("validation", val.features),
    ):
        yield [name, f"{n:,}", *format_distances(x, y)]


def format_distances(x: Tensor, y: Tensor) -> list[str]:
    """Return KID and FD-64."""
    return [
        format_measurement(kernel_distance(x, y)),
        format_measurement(frechet_distance(*project_all([x, y], y))),
    ]


def format_measurement(measured: Measurement) -> str:
    value, low, high = measured.interval()
    return f"{value:.3g} ({low:.3g} to {high:.3g})"


def main(arguments: Namespace) -> None:
    require_packages("efficientnet_lite_pytorch")
    for data in [DIGITS, *(arguments.data or [])]:
        print_table([f"`{data}`", "images", "KID", "FD-64"], measure_rows(data))
        print(flush=True)
