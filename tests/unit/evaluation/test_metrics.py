"""Every metric is complete: it is computed, described, printed and in the model card, and its direction is known."""

import numpy as np
import torch

from diffusion_lit.config.metric_columns import COLUMNS, METRIC_COLUMNS
from diffusion_lit.evaluation.features import FeatureExtractor
from diffusion_lit.evaluation.image_sets import ImageSet, Reference
from diffusion_lit.evaluation.intervals import proportion_interval
from diffusion_lit.evaluation.metrics import METRICS, Comparison
from diffusion_lit.evaluation.results import format_evaluation
from diffusion_lit.runs.sweeps import HIGHER_IS_BETTER

BETTER = {"precision", "recall", "density", "coverage", "class_accuracy"}
SETTINGS = {
    "features": {"name": "classifier", "digest": "0"}, "reference": {"split": "train", "images": 60}, "nfe": 1,
    "sampler": {"name": "ddim"}, "guidance_scale": None, "checkpoint": "", "weights": "", "seed": 0,
}  # fmt: skip


class Network(torch.nn.Module):
    """Features are the pixels, and so are the scores of the classes."""

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Identity()

    def forward(self, images):
        return images.flatten(1).float()


def compare_noise() -> Comparison:
    extractor = FeatureExtractor("classifier", Network(), "0", torch.device("cpu"), {"class_accuracy_real": 0.5})
    generator = torch.Generator().manual_seed(0)

    def draw(n: int) -> ImageSet:
        images = torch.randint(256, (n, 1, 2, 2), generator=generator).byte()
        return ImageSet(images, extractor(images), torch.arange(n) % 4)

    reference = Reference(extractor, extractor, draw(60), draw(60), list("abcd"))
    generated = draw(60)
    return Comparison(reference, generated.images, generated.labels.tolist())


def test_every_metric_returns_the_columns_that_describe_it():
    assert METRICS.keys() == METRIC_COLUMNS.keys()
    comparison = compare_noise()
    for name, columns in METRIC_COLUMNS.items():
        entries = METRICS[name](comparison)
        assert columns.keys() <= entries.keys()
        assert all(np.isfinite(entries[column]) for column in columns)


def test_every_metric_is_printed_with_what_real_images_score():
    comparison, result = compare_noise(), {"settings": SETTINGS, "num_images": 60, "nfe": 1}
    for compute in METRICS.values():
        result |= compute(comparison)
    lines = format_evaluation(result, [])
    columns = {name: column for name, column in COLUMNS.items() if name != "fd64"}  # 4 components: FD-64 is FD
    assert len(lines) == 3 + len(columns)
    for line, (name, column) in zip(lines[3:], columns.items(), strict=True):
        assert line.startswith(f"{column.heading:<10} {result[name]:{column.format}}"), name
        assert column.unit in line
    few = "; validation images: 60, too few to say how many new images are)"
    assert [few in line for line in lines if line.startswith("copied")] == [True, True]
    many = format_evaluation(result | {"copied_validation_images": 100}, [])
    assert sum("; 1 % of new images are, or fewer)" in line for line in many) == 2
    repeated = format_evaluation(result | {"copied_validation_images": 100, "copied_pixels_threshold": 0.0}, [])
    assert sum("ratio up to 0.00; 1 % of new images are, or more)" in line for line in repeated) == 1
    for name in ("fd", "fd64"):
        result[f"{name}_withheld"] = "60 are too few"
        del result[name]
    assert sum("60 are too few" in line for line in format_evaluation(result, [])) == 1  # the reason is said once
    with_real = {line.split()[0] for line in lines if "real images" in line or "validation images" in line}
    assert with_real == {"FD", "KID", "accuracy", "copied"}


def test_labels_are_distinct_and_the_direction_of_every_column_is_known():
    assert len({column.label for column in COLUMNS.values()}) == len(COLUMNS)
    assert {name for name in COLUMNS if name in HIGHER_IS_BETTER} == BETTER


def test_the_bounds_of_a_share_are_around_it():
    for n in range(1, 200):
        for hits in {0, 1, n // 2, n - 1, n}:
            value, low, high = proportion_interval(torch.arange(n) < hits)
            assert 0 <= low <= value <= high <= 1, (n, hits)
