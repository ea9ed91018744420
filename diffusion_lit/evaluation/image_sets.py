"""What `evaluate` compares: sets of images with their features, real and generated."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffusion_lit.data.store import ImageStore
from diffusion_lit.evaluation import features
from diffusion_lit.evaluation.distances import find_principal_components, project
from diffusion_lit.evaluation.features import FeatureExtractor, RealImages
from diffusion_lit.evaluation.image_metrics import COMPONENTS
from diffusion_lit.evaluation.intervals import fixed_permutation


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
        training: real images of the training split.
        val: real images of the validation split, if there is one.
        class_names: of the run.
        flip: whether training mirrors images at random.
    """

    extractor: FeatureExtractor
    classifier: FeatureExtractor | None
    training: ImageSet
    val: ImageSet | None
    class_names: list[str]
    flip: bool = False


def make_reference(
    real: RealImages, name: str, class_names: list[str], limit: int | None = None, with_classifier: bool = True
) -> Reference:
    """Return the reference of at most `limit` real images of each split, with the extractor of that name.

    Other features than those of the classifier come with one as well, if there are classes and
    `with_classifier`.
    """
    extractor = features.FEATURE_EXTRACTORS[name](real)
    classifier = extractor if name == "classifier" else None
    if classifier is None and class_names and with_classifier:
        classifier = features.make_classifier(real)

    def make_set(store: ImageStore) -> ImageSet:
        images, labels = torch.from_numpy(np.array(store.images)), torch.from_numpy(np.array(store.labels))
        return ImageSet(images, extractor.extract_split(store, real), labels).subset(limit)

    val = real.val and make_set(real.val)
    return Reference(extractor, classifier, make_set(real.train), val, class_names, real.flip)


class FeatureSets(NamedTuple):
    """Features (N, D) of the generated, the real, and the real images of the other split, if those are measured."""

    generated: Tensor
    real: Tensor
    other: Tensor | None

    def project(self) -> "FeatureSets":
        """Return the first 64 principal components of the real features."""
        mean, basis = find_principal_components(self.real, COMPONENTS)
        return FeatureSets(*[None if x is None else project(x, mean, basis) for x in self])
