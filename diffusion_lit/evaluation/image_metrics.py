"""The metrics as `torchmetrics.Metric`s, to use alone, in a `MetricCollection`, and over several processes.

    metric = KernelDistance(extractor)
    metric.update(real_images, real=True)
    metric.update(generated_images, real=False)
    metric.compute()

Over several processes `compute` is that of the images of all. `evaluate` and training
measure with the same classes, on features that they keep.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, distributed
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from diffusion_lit.evaluation.distances import (
    IMAGES_PER_FEATURE,
    find_principal_components,
    frechet_distance,
    kernel_distance,
    project,
)
from diffusion_lit.evaluation.intervals import Estimate, Measurement
from diffusion_lit.evaluation.manifold import precision_recall
from diffusion_lit.evaluation.memorization import Neighbors, NeighborSearch, choose_threshold
from diffusion_lit.evaluation.reference_statistics import RealFeatures, ReferenceStatistics, unwrap

Extractor = Callable[[Tensor], Tensor]
COMPONENTS = 64  # of FD-64


class ImageMetric(Metric):
    """A metric of images, whose states are gathered from all processes, also from those that have no images."""

    is_differentiable = False
    full_state_update = False

    def sync(self, *args, should_sync: bool = True, process_group: object = None, **kwargs) -> None:
        """Gather the states of all processes."""
        if should_sync and not self._is_synced and distributed.is_available() and distributed.is_initialized():
            self._add_empty_states(process_group or self.process_group)
        super().sync(*args, should_sync=should_sync, process_group=process_group, **kwargs)

    def _add_empty_states(self, group: object) -> None:
        """Give a state without images the shape and type that it has elsewhere: gathering needs them to be equal."""
        states = {name: getattr(self, name) for name in self._reductions}
        kinds: list = [None] * distributed.get_world_size(group)
        own = {name: (x[0].shape[1:], x[0].dtype) for name, x in states.items() if len(x)}
        distributed.all_gather_object(kinds, own, group)
        known = {name: kind for one in kinds for name, kind in one.items()}
        for name, (shape, dtype) in known.items():
            if not len(states[name]):
                states[name].append(torch.zeros(0, *shape, dtype=dtype, device=self.device))

    def measure(self) -> Any:
        """Return what `compute` summarizes, from the images of all processes.

        For a distance it is a `Measurement` with the influence of each image, for
        `PrecisionRecall` the shares with their intervals, for `Copies` and
        `ClassAccuracy` the result for each generated image.
        """
        with self.sync_context(should_sync=self._to_sync, should_unsync=self._should_unsync):
            return self._measure()

    def _measure(self) -> Any:
        raise NotImplementedError


class FeatureMetric(ImageMetric):
    """Collects features of generated and of real images.

    Args:
        extractor: a function from images to features (N, D); None: `update` receives features.
        reset_real_features: whether `reset` forgets the real images too, as in torchmetrics.
        kwargs: of `torchmetrics.Metric`.
    """

    real_states = ("real",)  # which `reset_real_features` is about
    generated: list[Tensor]
    real: list[Tensor]

    def __init__(self, extractor: Extractor | None = None, reset_real_features: bool = True, **kwargs: object):
        super().__init__(**kwargs)
        self.extractor, self.reset_real_features = extractor, reset_real_features
        for name in ("generated", *self.real_states):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, images: Tensor, real: bool) -> None:
        """Add images, or features without an extractor."""
        features = images if self.extractor is None else self.extractor(images)
        (self.real if real else self.generated).append(features)

    def reset(self) -> None:
        """Forget the images."""
        kept = {} if self.reset_real_features else {name: list(getattr(self, name)) for name in self.real_states}
        super().reset()  # empties the lists themselves
        for name, features in kept.items():
            setattr(self, name, features)

    def _features(self) -> tuple[Tensor, Tensor]:
        return dim_zero_cat(self.generated), dim_zero_cat(self.real)


class DistanceMetric(FeatureMetric):
    """A distance of two sets of features, with its interval."""

    higher_is_better = False

    def compute(self) -> Tensor:
        """Return the distance; `measure` has the influence of each image as well."""
        return torch.tensor(self._measure().value)


class KernelDistance(DistanceMetric):
    """Kernel distance (KID), unbiased for any number of images of at least 2 (Binkowski et al. 2018).

    Args:
        extractor: see `FeatureMetric`.
        labels: classes of the generated images if the number of each is fixed, see `kernel_distance`.
        kwargs: of `FeatureMetric`.
    """

    def __init__(self, extractor: Extractor | None = None, labels: Tensor | None = None, **kwargs: Any):
        super().__init__(extractor, **kwargs)
        self.labels = labels

    def _measure(self) -> Measurement:
        return kernel_distance(*self._features(), self.labels)


class FrechetDistance(DistanceMetric):
    """Fréchet distance (FD) of features; FID with those of Inception (Heusel et al. 2017).

    Args:
        extractor: see `FeatureMetric`.
        reset_real_features: see `FeatureMetric`.
        statistics: of the real images, instead of images in `update`, whose real ones do not count then.
        kwargs: of `torchmetrics.Metric`.

    Raises:
        ValueError: for fewer than 5 images per feature, whose distance is mostly bias.
    """

    def __init__(
        self,
        extractor: Extractor | None = None,
        reset_real_features: bool = True,
        statistics: ReferenceStatistics | None = None,
        **kwargs: object,
    ):
        super().__init__(extractor, reset_real_features, **kwargs)
        self.statistics = statistics

    def _features(self) -> tuple[Tensor, RealFeatures]:
        if self.statistics is None:
            return super()._features()
        generated = dim_zero_cat(self.generated)
        return generated, self.statistics.to(generated.device)

    def _measure(self) -> Measurement:
        generated, real = self._features()
        if reason := too_few_images(len(generated), *real.shape):
            raise ValueError(reason)
        return frechet_distance(generated, unwrap(real))


class FrechetDistance64(FrechetDistance):
    """FD-64: Fréchet distance of the first 64 principal components of the real images.

    It needs 320 images.
    """

    def _features(self) -> list[RealFeatures | None]:
        generated, real = super()._features()
        return project_all([generated, real], real)


def project_all(sets: Sequence[RealFeatures | None], real: RealFeatures) -> list[RealFeatures | None]:
    """Return features, or their statistics, in the first 64 principal components of the real ones."""
    mean, basis = find_principal_components(unwrap(real), COMPONENTS)

    def convert(x: RealFeatures | None) -> RealFeatures | None:
        return x.project(mean, basis) if isinstance(x, ReferenceStatistics) else project(x, mean, basis)

    return [x if x is None else convert(x) for x in sets]


def too_few_images(generated: int, real: int | None, features: int) -> str | None:
    """Return why a Fréchet distance is meaningless, or None.

    Args:
        generated: number of generated images.
        real: number of real images; None if it is unknown.
        features: number of features.
    """
    needed = IMAGES_PER_FEATURE * features
    if min(generated, needed if real is None else real) >= needed:
        return None
    if real is None:
        return f"{generated:,} generated images, but {features:,} features need {needed:,}"
    return f"{generated:,} generated and {real:,} real images, but {features:,} features need {needed:,} of both"


class PrecisionRecall(FeatureMetric):
    """Precision, recall, density and coverage (Kynkäänniemi et al. 2019; Naeem et al. 2020)."""

    higher_is_better = True

    def compute(self) -> dict[str, Tensor]:
        """Return the four shares by name."""
        return {name: torch.tensor(getattr(share, "value", share)) for name, share in self._measure().items()}

    def _measure(self) -> dict[str, Estimate | float]:
        """Return the four shares, those that have one with their interval."""
        return precision_recall(*self._features())


class Copies(FeatureMetric):
    """Share of generated images that are copies of a training image.

    Real images are those of the training split; with `validation=True` they are new ones, which
    choose the threshold: 1 % of them are not above it.
    """

    higher_is_better = False
    real_states = ("real", "validation")
    validation: list[Tensor]

    def update(self, images: Tensor, real: bool, validation: bool = False) -> None:
        """Add images, or features without an extractor."""
        if validation:
            self.validation.append(images if self.extractor is None else self.extractor(images))
        else:
            super().update(images, real)

    def compute(self) -> Tensor:
        """Return the share."""
        return self._measure()[0].double().mean()

    def _measure(self) -> tuple[Tensor, float, Neighbors]:
        """Return which generated images are copies, (N,), the threshold, and their neighbors."""
        generated, training = self._features()
        search = NeighborSearch(training)
        threshold = choose_threshold(search(dim_zero_cat(self.validation)) if len(self.validation) else None)
        neighbors = search(generated)
        return neighbors.ratio <= threshold, threshold, neighbors


class ClassAccuracy(ImageMetric):
    """Share of generated images that a classifier assigns to the class they were generated for.

    Args:
        classifier: a function from images to classes (N,).
        kwargs: of `torchmetrics.Metric`.
    """

    higher_is_better = True
    is_correct: list[Tensor]

    def __init__(self, classifier: Callable[[Tensor], Tensor], **kwargs: object):
        super().__init__(**kwargs)
        self.classifier = classifier
        self.add_state("is_correct", [], dist_reduce_fx="cat")

    def update(self, images: Tensor, labels: Tensor, real: bool = False) -> None:
        """Add images with their classes (N,); real ones do not count."""
        if not real:
            self.is_correct.append(self.classifier(images) == labels)

    def compute(self) -> Tensor:
        """Return the share."""
        return self._measure().double().mean()

    def _measure(self) -> Tensor:
        """Return which images are classified as their class, (N,)."""
        return dim_zero_cat(self.is_correct)
