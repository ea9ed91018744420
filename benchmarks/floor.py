"""What a perfect model would score: real images against other real images of the same set."""

import shlex
from argparse import Namespace
from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.measure import compose_config, print_table
from diffusion_lit.data.store import load_splits
from diffusion_lit.evaluation.distances import frechet_distance, kernel_distance
from diffusion_lit.evaluation.features import collect_real_images
from diffusion_lit.evaluation.image_metrics import project_all, too_few_images
from diffusion_lit.evaluation.image_sets import make_reference
from diffusion_lit.evaluation.intervals import Measurement, fixed_permutation

DIGITS = "data=digits"
FEATURES = ("classifier", "efficientnet_lite0")


def measure_rows(data: str) -> Iterator[list[object]]:
    """Measure the validation images, and one half of the training images, against as many training images."""
    config, source = compose_config(*shlex.split(data), "experiment=none")
    real = collect_real_images(*load_splits(source, config["data"]), config["data"], torch.device("cpu"))
    for name in FEATURES:
        reference = make_reference(real, name, config["data"]["class_names"], with_classifier=False)
        train, val = reference.training.features, reference.val.features
        halves = train[fixed_permutation(len(train))].tensor_split(2)
        for description, x, y in (("validation images", val, train), ("half of the training images", *halves)):
            yield [name, f"{description}: {len(x):,} against {len(y):,}", *format_distances(x, y)]


def format_distances(x: Tensor, y: Tensor) -> list[str]:
    """Return KID, FD-64 and FD; FD of too few images is withheld."""
    is_measurable = not too_few_images(len(x), *y.shape)
    fd = format_measurement(frechet_distance(x, y)) if is_measurable else "withheld"
    return [
        format_measurement(kernel_distance(x, y)),
        format_measurement(frechet_distance(*project_all([x, y], y))),
        fd,
    ]


def format_measurement(measured: Measurement) -> str:
    value, low, high = measured.interval()
    return f"{value:.3g} ({low:.3g} to {high:.3g})"


def main(arguments: Namespace) -> None:
    for data in [DIGITS, *(arguments.data or [])]:
        print_table([f"`{data}`", "real images", "KID", "FD-64", "FD"], measure_rows(data))
        print(flush=True)
