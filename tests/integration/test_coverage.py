"""Coverage of intervals and power of comparisons, by repetition on features of a known distribution.

Slow: thousands of repetitions. `-s` prints the table of BENCHMARKS.md.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from diffusion_lit.evaluation.distances import frechet_distance, kernel_distance
from diffusion_lit.evaluation.intervals import Estimate, Measurement, measure_mean, proportion_interval
from diffusion_lit.evaluation.manifold import precision_recall

REPETITIONS = 1000
FEATURES = 16
SPECTRUM = torch.arange(1, FEATURES + 1).double() ** -0.7  # standard deviations of the features, as of real ones
MODEL = 0.6 * SPECTRUM, 1.1  # shift and scale of the generated images
CLOSE = 0.05 * SPECTRUM, 1.0  # of a model nearly as good as real images

pytestmark = pytest.mark.slow


def draw(n: int, seed: int, shift: Tensor | float = 0.0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, FEATURES, generator=generator, dtype=torch.double) * SPECTRUM * scale + shift


def is_precise(x: Tensor, y: Tensor) -> Estimate:
    return precision_recall(x, y)["precision"]


INTERVALS: dict[str, tuple[int, Callable[[Tensor, Tensor], Estimate]]] = {
    "kid": (500, lambda x, y: kernel_distance(x, y).interval()),
    "fd": (500, lambda x, y: frechet_distance(x, y).interval()),
    "class_accuracy": (500, lambda x, y: proportion_interval(x[:, 0] > -1)),
    "density": (500, lambda x, y: precision_recall(x, y)["density"]),
    "precision": (500, is_precise),
}


@pytest.mark.parametrize("name", INTERVALS)
def test_an_interval_covers_the_mean_over_all_generated_images(name):
    """The real images stay the same; the mean over the repetitions stands for that over all generated images."""
    n, measure = INTERVALS[name]
    real = draw(500 if name in ("density", "precision") else 1000, 10**6)
    found = [measure(draw(n, seed, *MODEL), real) for seed in range(REPETITIONS)]
    mean = np.mean([estimate.value for estimate in found])
    covered = np.mean([estimate.low <= mean <= estimate.high for estimate in found])
    print(f"coverage | {name} | N={n} | {covered:.1%}")
    assert 0.93 <= covered <= 0.97


def mean_feature(x: Tensor, y: Tensor) -> Measurement:
    return measure_mean(x[:, 0])


def compare(distance: Callable, n: int, gap: float, seed: int, real: Tensor, model: tuple = MODEL) -> Measurement:
    """Return the difference of two models, whose images of one seed are alike."""
    shift, scale = model
    x = draw(n, seed, shift, scale)
    y = 0.8 * (x - shift) + 0.6 * draw(n, seed + 10**7, 0.0, scale) + shift * (1 + gap)
    return distance(y, real) - distance(x, real)


@pytest.mark.parametrize("distance", [kernel_distance, frechet_distance, mean_feature])
def test_a_difference_of_2_8_standard_errors_is_mostly_found_and_none_seldom(distance):
    real, n = draw(1000, 10**6), 1000

    def find_differences(gap: float) -> tuple[np.ndarray, np.ndarray]:
        found = [compare(distance, n, gap, seed, real) for seed in range(REPETITIONS)]
        estimates = [difference.interval() for difference in found]
        values = np.array([estimate.value for estimate in estimates])
        return values, np.array([estimate.low > 0 or estimate.high < 0 for estimate in estimates])

    values, is_found = find_differences(0.0)
    false_alarms, gap = is_found.mean(), 0.05
    for _ in range(3):  # until the models are 2.8 standard errors apart, whose size changes with the gap
        values, is_found = find_differences(gap)
        power, gap = is_found.mean(), gap * 2.8 * values.std() / values.mean()
    print(
        f"comparison | {distance.__name__} | N={n} | equal {false_alarms:.1%} | 2.8 standard errors apart {power:.1%}"
    )
    assert 0.036 <= false_alarms <= 0.064
    assert 0.76 <= power <= 0.84


@pytest.mark.parametrize("distance", [kernel_distance, frechet_distance])
def test_intervals_of_models_nearly_as_good_as_real_images_are_too_wide_not_too_narrow(distance):
    real = draw(1000, 10**6)
    found = [compare(distance, 500, 0.0, seed, real, CLOSE).interval() for seed in range(REPETITIONS)]
    false_alarms = np.mean([estimate.low > 0 or estimate.high < 0 for estimate in found])
    print(f"comparison | {distance.__name__} | N=500, nearly real | equal {false_alarms:.1%}")
    assert false_alarms <= 0.064
