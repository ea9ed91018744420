"""The metrics of `evaluate`: functions from a comparison of generated and real images to entries of result.json.

To add a metric, write a function of a `Comparison`, add it to `METRICS`,
describe its numbers in `METRIC_COLUMNS` of
`diffusion_lit.config.metric_columns`, and add its name to the types of
`metrics` and `best_by` in the yaml files. Tests check that each metric is
complete.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion_lit.config.metric_columns import METRIC_COLUMNS
from diffusion_lit.data.store import ImageStore
from diffusion_lit.evaluation import features
from diffusion_lit.evaluation.colors import color_statistics
from diffusion_lit.evaluation.distances import (
    SUBSET_IMAGES,
    extrapolated_frechet_distance,
    kernel_distance,
    subset_kernel_distance,
)
from diffusion_lit.evaluation.features import FeatureExtractor, pixel_vectors
from diffusion_lit.evaluation.image_metrics import (
    ClassAccuracy,
    Copies,
    DistanceMetric,
    FrechetDistance,
    KernelDistance,
    PrecisionRecall,
    too_few_images,
)
from diffusion_lit.evaluation.image_sets import FeatureSets, ImageSet, Reference
from diffusion_lit.evaluation.intervals import Estimate, Measurement, measure_mean, proportion_interval
from diffusion_lit.evaluation.memorization import Neighbors
from diffusion_lit.evaluation.reference_statistics import RealFeatures, ReferenceStatistics
from diffusion_lit.system.errors import DataError

MIN_IMAGES = 4  # for a distance between sets
MIN_CLASS_IMAGES = 20  # for the kernel distance of a class
PIXELS = 32  # px, to which larger images are shrunk before pixels are compared


class Comparison:
    """Generated images and the real ones of a split of the reference.

    Args:
        reference: the real images.
        images: generated images, uint8 (N, C, H, W).
        labels: their requested classes, (N,).
        split: "train" or "val".
        compare_real: also measure as many real images of the other split, as a perfect model would
            score that draws classes at random; with a fixed number of each its FD is lower.
        features: of the generated images, if known.

    Raises:
        UserError: exit 3 for a split of too few images.
    """

    def __init__(
        self, reference: Reference, images: Tensor, labels: list[int], split="train", compare_real=True, features=None
    ):
        self.reference, self.training = reference, reference.training
        features = reference.extractor(images) if features is None else features
        self.generated = ImageSet(images, features, torch.as_tensor(labels))
        self.measurements: dict[str, Measurement] = {}  # for paired comparisons, by column
        self.real = self.other = None
        if reference.statistics:
            return
        self.real, other = reference.compared(split), reference.compared("val" if split == "train" else "train")
        if len(self.real) < MIN_IMAGES:
            message = f"reference_split={split}: {len(self.real)} images are too few for a distance. Use {MIN_IMAGES}+"
            raise DataError(message)
        self.other = other.subset(len(images)) if compare_real and other and len(other) >= MIN_IMAGES else None

    @cached_property
    def device(self) -> torch.device:
        """Return where distances are computed: on the GPU of the features, or the CPU (MPS has no float64)."""
        device = self.reference.extractor.device
        return device if device.type == "cuda" else torch.device("cpu")

    @cached_property
    def features(self) -> FeatureSets:
        """Return the features of the generated, the real and the other real images, on the device."""
        if statistics := self.reference.statistics:
            return FeatureSets(self.generated.features.to(self.device), statistics.to(self.device), None)
        sets = (self.generated, self.real, self.other)
        return FeatureSets(*[images and images.features.to(self.device) for images in sets])

    @cached_property
    def is_correct(self) -> Tensor:
        """Return which generated images are classified as their label, (N,)."""
        return _is_correct(self.reference.classifier, self.generated.images, self.generated.labels)

    @cached_property
    def copies(self) -> dict[str, "FoundCopies"]:
        """Return which generated images are copies of training images, by pixels and by features."""
        return {space: self._find_copies(space) for space in ("pixels", "features")}

    def _find_copies(self, space: str) -> "FoundCopies":
        """Find copies in a space. Where training mirrors images, mirror images by pixels are copies too."""
        metric, training = Copies(sync_on_compute=False), self.training
        metric.update(_vectors(self.generated, space), real=False)
        metric.update(_vectors(training, space), real=True)
        if space == "pixels" and self.reference.flip:
            metric.update(pixel_vectors(training.images.flip(-1), PIXELS), real=True)
        if self.reference.val:
            metric.update(_vectors(self.reference.val, space), real=True, validation=True)
        is_copy, threshold, neighbors = metric.measure()
        return FoundCopies(is_copy, threshold, neighbors._replace(index=neighbors.index % len(training)))


class FoundCopies(NamedTuple):
    """Which generated images are copies, (N,), the ratio up to which they are, and their neighbors."""

    is_copy: Tensor
    threshold: float
    neighbors: Neighbors


def _vectors(images: ImageSet, space: str) -> Tensor:
    return pixel_vectors(images.images, PIXELS) if space == "pixels" else images.features


def compute_kid(c: Comparison) -> dict[str, float]:
    """Return the kernel distance, that of real images, and from 2,000 images on that of 100 subsets of 1,000."""
    generated, real, _ = c.features
    result = _distance_entries(c, c.features, KernelDistance, "kid", labels=c.generated.labels)
    if len(generated) >= 2 * SUBSET_IMAGES and len(real) >= SUBSET_IMAGES:
        result["kid_subsets"], result["kid_subsets_std"] = subset_kernel_distance(generated, real)
    return result


def compute_fd(c: Comparison) -> dict[str, object]:
    """Return the Fréchet distance, also extrapolated to infinitely many images, and those of real images.

    With fewer than 5 images per feature `fd_withheld` says why it is left out.
    """
    return _frechet_entries(c, c.features, "fd")


def compute_fd64(c: Comparison) -> dict[str, object]:
    """Return the Fréchet distance of 64 principal components, as `compute_fd`."""
    return _frechet_entries(c, c.features.project(), "fd64")


def _frechet_entries(c: Comparison, sets: FeatureSets, name: str) -> dict[str, object]:
    if reason := too_few_images(len(sets.generated), *sets.real.shape):
        return {f"{name}_withheld": reason}
    if sets.other is not None and len(sets.other) < len(sets.generated):
        sets = sets._replace(other=None)  # fewer images have a larger distance
    result = _distance_entries(c, sets, FrechetDistance, name)
    if c.reference.statistics:
        return result  # halves of the real images are unknown
    extrapolated = extrapolated_frechet_distance(sets.generated, sets.real, result[name], c.generated.labels)
    return result | {f"{name}_extrapolated": extrapolated}


def _distance_entries(
    c: Comparison, sets: FeatureSets, metric: type[DistanceMetric], name: str, **settings: Tensor
) -> dict[str, float]:
    measured = _measure(metric, sets.generated, sets.real, **settings).stratify(c.generated.labels)
    c.measurements[name] = measured
    result: dict[str, float] = measured.interval().entries(name)
    if measured.real is not None:
        result[f"{name}_reference_error"] = measured.reference_error()
    if sets.other is not None:
        other = _measure(metric, sets.other, sets.real)
        result |= other.interval().entries(f"{name}_real") | {f"{name}_real_images": len(sets.other)}
    return result


def _measure(metric: type[DistanceMetric], generated: Tensor, real: RealFeatures, **settings: Tensor) -> Measurement:
    if isinstance(real, ReferenceStatistics):
        distance = metric(statistics=real, sync_on_compute=False)
        distance.update(generated, real=False)
        return distance.measure()
    distance = metric(sync_on_compute=False, **settings)
    distance.update(generated, real=False)
    distance.update(real, real=True)
    return distance.measure()


def compute_precision_recall(c: Comparison) -> dict[str, float]:
    """Return precision, recall, density and coverage."""
    result = {}
    metric = PrecisionRecall(sync_on_compute=False)
    metric.update(c.features.generated, real=False)
    metric.update(c.features.real, real=True)
    for name, number in metric.measure().items():
        result |= number.entries(name) if isinstance(number, Estimate) else {name: number}
    return result


def compute_class_accuracy(c: Comparison) -> dict[str, float]:
    """Return the class accuracy of the generated images."""
    c.measurements["class_accuracy"] = measure_mean(c.is_correct).stratify(c.generated.labels)
    return proportion_interval(c.is_correct).entries("class_accuracy") | c.reference.classifier.facts


def score_class_accuracy(classifier: FeatureExtractor, images: Tensor, labels: Sequence[int]) -> dict[str, float]:
    """Return the share of images classified as their label, and the classifier's accuracy on real images."""
    is_correct = _is_correct(classifier, images, labels)
    return proportion_interval(is_correct).entries("class_accuracy") | classifier.facts


def _is_correct(classifier: FeatureExtractor, images: Tensor, labels: Sequence[int]) -> Tensor:
    metric = ClassAccuracy(lambda x: features.predict_classes(classifier, classifier(x)), sync_on_compute=False)
    metric.update(images, torch.as_tensor(labels))
    return metric.measure()


def compute_memorization(c: Comparison) -> dict[str, float]:
    """Return the share of copies of training images, by pixels and by features, and what the threshold is from."""
    result = {"copied_validation_images": len(c.reference.val or ())}
    for space, found in c.copies.items():
        result |= proportion_interval(found.is_copy).entries(f"copied_{space}")
        result[f"copied_{space}_threshold"] = found.threshold
    return result


def compute_colors(c: Comparison) -> dict[str, object]:
    """Return the color statistics, and the mean distance of the channels."""
    table = color_statistics(c.generated.images, c.real.images)
    return {"color_distance": sum(row["distance"] for row in table.values()) / len(table), "colors": table}


METRICS: dict[str, Callable[[Comparison], dict]] = {
    "kid": compute_kid,
    "fd": compute_fd,
    "fd64": compute_fd64,
    "precision_recall": compute_precision_recall,
    "class_accuracy": compute_class_accuracy,
    "memorization": compute_memorization,
    "colors": compute_colors,
}


OF_STATISTICS = {"fd", "fd64", "class_accuracy"}  # metrics that need no real images


def compute_metric(name: str, c: Comparison) -> dict[str, object]:
    """Return the entries of a metric, or why its columns are withheld."""
    if c.reference.statistics and name not in OF_STATISTICS:
        reason = f"needs images, and {c.reference.statistics.file} has their mean and covariance only"
    elif name == "class_accuracy" and c.reference.classifier is None:
        reason = "no images to train a classifier on. Add reference_data="
    else:
        return METRICS[name](c)
    return {f"{column}_withheld": reason for column in METRIC_COLUMNS[name]}


def compute_per_class(c: Comparison, requested: Sequence[str] = ("class_accuracy", "kid")) -> list[dict[str, object]]:
    """Return a row for each class: number of images, and of the requested metrics class accuracy and KID.

    KID, which has no bias at small numbers of images, is left out where there are fewer
    than 20.
    """
    rows = []
    for label, name in enumerate(c.reference.class_names):
        generated = torch.nonzero(c.generated.labels == label)[:, 0]
        real = torch.nonzero(c.real.labels == label)[:, 0] if c.real else ()
        row = {"class": name, "images": len(generated), "real_images": len(real)}
        if len(generated) and "class_accuracy" in requested and c.reference.classifier:
            row |= proportion_interval(c.is_correct[generated]).entries("class_accuracy")
        if min(len(generated), len(real)) >= MIN_CLASS_IMAGES and "kid" in requested:
            row |= kernel_distance(c.features.generated[generated], c.features.real[real]).interval().entries("kid")
        rows.append(row)
    return rows


def labels_in_proportion(labels: Tensor, n: int) -> list[int]:
    """Return labels of images 0 .. n - 1 in the proportions of `labels`; label k does not depend on n.

    Label k is that at the fractional part of k times the golden ratio of the sorted labels, an
    equidistributed sequence (Weyl 1916).
    """
    ordered = labels.sort().values
    return [int(ordered[int(k * 0.6180339887498949 % 1 * len(ordered))]) for k in range(n)]


def draw_prompts(store: ImageStore, n: int) -> tuple[list[int], list[str]]:
    """Return labels and captions for images 0 .. n - 1, spread evenly over real ones; caption k does not depend on n.

    Args:
        store: the real images; the first caption of an image counts.
        n: number of prompts.
    """
    pairs = sorted((own[0], int(label)) for own, label in zip(store.captions, store.labels, strict=True) if own)
    chosen = [pairs[k] for k in labels_in_proportion(torch.arange(len(pairs)), n)]
    return [label for _, label in chosen], [text for text, _ in chosen]
