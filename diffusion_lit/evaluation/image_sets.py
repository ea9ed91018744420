"""What `evaluate` compares: sets of images with their features, real and generated."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffusion_lit.data.store import ImageStore
from diffusion_lit.evaluation import features
from diffusion_lit.evaluation.distances import compute_moments
from diffusion_lit.evaluation.features import FeatureExtractor, RealImages
from diffusion_lit.evaluation.image_metrics import project_all
from diffusion_lit.evaluation.intervals import fixed_permutation
from diffusion_lit.evaluation.reference_statistics import RealFeatures, ReferenceStatistics


@dataclass(frozen=True)
class ImageSet:
    """Images uint8 (N, C, H, W) with features (N, D) and labels (N,)."""

    images: Tensor
    features: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, n: int | None) -> "ImageSet":
        """Return at most n images, a fixed random choice."""
        index = fixed_permutation(len(self))[:n]
        return ImageSet(self.images[index], self.features[index], self.labels[index])


@dataclass(frozen=True)
class Reference:
    """What generated images are compared with.

    Args:
        extractor: of the features.
        classifier: for class accuracy; None without classes.
        training: real images of the training split; None with `statistics`.
        val: real images of the validation split, if there is one.
        class_names: of the run.
        flip: whether training mirrors images at random.
        statistics: of real images, instead of the images.
        limit: number of images of a split that distances compare with, at most.
    """

    extractor: FeatureExtractor
    classifier: FeatureExtractor | None
    training: ImageSet | None
    val: ImageSet | None
    class_names: list[str]
    flip: bool = False
    statistics: ReferenceStatistics | None = None
    limit: int | None = None

    def compared(self, split: str) -> ImageSet | None:
        """Return the images of a split, "train" or "val", that distances compare with. Copies are sought among all."""
        images = self.training if split == "train" else self.val
        return images.subset(self.limit) if images and self.limit else images


def make_reference(
    real: RealImages,
    name: str,
    class_names: list[str],
    limit: int | None = None,
    with_classifier: bool = True,
    statistics: ReferenceStatistics | None = None,
) -> Reference:
    """Return the reference of real images, with the extractor of that name.

    Distances compare with at most `limit` images of each split. Other features
    than those of the classifier come with one as well, if there are classes and
    `with_classifier`. With `statistics` there are no images in it.
    """
    extractor = features.FEATURE_EXTRACTORS[name](real)
    classifier = extractor if name == "classifier" else None
    if classifier is None and class_names and with_classifier and real.train:
        classifier = features.make_classifier(real)
    if statistics:
        return Reference(extractor, classifier, None, None, class_names, real.flip, statistics)

    def make_set(store: ImageStore) -> ImageSet:
        images, labels = torch.from_numpy(np.array(store.images)), torch.from_numpy(np.array(store.labels))
        return ImageSet(images, extractor.extract_split(store, real), labels).subset(None)

    val = real.val and make_set(real.val)
    return Reference(extractor, classifier, make_set(real.train), val, class_names, real.flip, limit=limit)


class FeatureSets(NamedTuple):
    """Features (N, D) of the generated, the real, and the real images of the other split, if those are measured."""

    generated: Tensor
    real: RealFeatures
    other: Tensor | None

    def project(self) -> "FeatureSets":
        """Return the first 64 principal components of the real features."""
        return FeatureSets(*project_all(self, self.real))


def compute_statistics(images: ImageSet, extractor: FeatureExtractor, resize: str, fingerprint: str):
    """Return the `ReferenceStatistics` of real images.

    Args:
        images: with their features.
        extractor: of the features.
        resize: of the images, see `describe_resize`.
        fingerprint: of the images.
    """
    moments = compute_moments(images.features)
    return ReferenceStatistics(moments, len(images), extractor.name, extractor.digest, resize, fingerprint)


def describe_resize(extractor: FeatureExtractor, height: int, width: int, resample: str | None) -> str:
    """Return how images are resized for the data and for their features."""
    return f"{height}x{width}, {resample}; {extractor.name}: {extractor.resize}"
