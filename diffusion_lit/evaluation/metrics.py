"""The metrics by name: each turns what was generated, and what is real, into numbers for result.json."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from diffusion_lit.data.store import ImageStore
from diffusion_lit.evaluation.colors import colour_statistics
from diffusion_lit.evaluation.distances import frechet_distance, kernel_distance
from diffusion_lit.evaluation.features import EXTRACTORS, Extractor, Pictures, classes, classifier, small
from diffusion_lit.evaluation.intervals import Estimate, of_share, shuffled
from diffusion_lit.evaluation.manifold import precision_recall
from diffusion_lit.evaluation.memorization import Neighbours, nearest
from diffusion_lit.system.errors import Exit, UserError

FEWEST = 4  # images of a set whose distance to another one can be told
PIXELS = 32  # px, to which larger pictures are shrunk before pixels are compared


@dataclass(frozen=True)
class Images:
    """images uint8 (N, C, H, W), features (N, D), labels (N,)."""

    images: Tensor
    features: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def some(self, n: int | None) -> "Images":
        """N of them at most, at random, always the same."""
        index = shuffled(len(self))[:n]
        return Images(self.images[index], self.features[index], self.labels[index])


@dataclass(frozen=True)
class Reference:
    """What a run is measured by: an extractor, a classifier if there are classes, real images with their features."""

    extractor: Extractor
    judge: Extractor | None
    training: Images
    held_out: Images | None  # None: nothing is
    class_names: list[str]


def reference_of(pictures: Pictures, features: str, class_names: list[str], limit: int | None = None) -> Reference:
    """With at most `limit` images of each split."""
    extractor = EXTRACTORS[features](pictures)
    judge = extractor if features == "classifier" else classifier(pictures) if class_names else None

    def images(store: ImageStore) -> Images:
        found, labels = torch.from_numpy(np.array(store.images)), torch.from_numpy(np.array(store.labels))
        return Images(found, extractor.of(store, pictures), labels).some(limit)

    held_out = images(pictures.val) if pictures.val else None
    return Reference(extractor, judge, images(pictures.train), held_out, class_names)


class Evidence:
    """What metrics look at: generated images uint8 (N, C, H, W) and the labels asked for, against a split of the
    reference.

    With `floor` as many `other` images, of the other split if that has enough, are measured besides: what a perfect
    model would score. `features` of the generated images, if they are known already.

    Raises:
        UserError: exit 3 for a split of too few images.
    """

    def __init__(
        self, reference: Reference, images: Tensor, labels: Sequence[int], split="train", floor=True, features=None
    ):
        self.reference, self.training = reference, reference.training
        self.held_out = reference.held_out if floor else None
        features = reference.extractor(images) if features is None else features
        self.generated = Images(images, features, torch.as_tensor(labels))
        self.real, other = (
            (reference.held_out, self.training) if split == "val" else (self.training, reference.held_out)
        )
        if len(self.real) < FEWEST:
            told = f"reference={split}: {len(self.real)} pictures are too few to measure a distance from"
            raise UserError(Exit.DATA, f"{told}, take {FEWEST} or more")
        self.other = other.some(len(images)) if floor and other and len(other) >= FEWEST else None

    @cached_property
    def neighbours(self) -> dict[str, Neighbours]:
        """Those of the generated images in the training split."""
        return neighbours_of(self.generated, self.training)


def fd(e: Evidence) -> dict[str, float]:
    estimate, unbiased = frechet_distance(e.generated.features, e.real.features)
    found = named("fd", estimate) | {"fd_unbiased": unbiased}
    if e.other:
        estimate, unbiased = frechet_distance(e.other.features, e.real.features)
        found |= {"fd_floor": estimate.value, "fd_floor_unbiased": unbiased, "fd_floor_images": len(e.other)}
    return found


def kid(e: Evidence) -> dict[str, float]:
    found = named("kid", kernel_distance(e.generated.features, e.real.features))
    return found | (named("kid_floor", kernel_distance(e.other.features, e.real.features)) if e.other else {})


def manifold(e: Evidence) -> dict[str, float]:
    found = precision_recall(e.generated.features, e.real.features)
    return {key: value for name, estimate in found.items() for key, value in named(name, estimate).items()}


def class_accuracy(e: Evidence) -> dict[str, float]:
    return accuracy(e.reference.judge, e.generated.images, e.generated.labels)


def accuracy(judge: Extractor, images: Tensor, labels: Sequence[int]) -> dict[str, float]:
    """The share of images judged to be the class they were asked to be, and of held-out real ones."""
    return named("class_accuracy", of_share(_right(judge, images, labels))) | judge.facts


def _right(judge: Extractor, images: Tensor, labels: Sequence[int]) -> Tensor:
    return classes(judge, judge(images)) == torch.as_tensor(labels)


def memorization(e: Evidence) -> dict[str, float]:
    """The share of images that are copies of a training image, by pixels and by features, and of held-out real ones."""
    found = {"copied": e.neighbours}
    if e.held_out:
        found["copied_held_out"] = neighbours_of(e.held_out, e.training)
    return {
        key: value
        for name, ways in found.items()
        for how, neighbours in ways.items()
        for key, value in named(f"{name}_{how}", of_share(neighbours.copied)).items()
    }


def neighbours_of(images: Images, training: Images) -> dict[str, Neighbours]:
    return {
        "pixels": nearest(small(images.images, PIXELS), small(training.images, PIXELS)),
        "features": nearest(images.features, training.features),
    }


def colors(e: Evidence) -> dict[str, object]:
    table = colour_statistics(e.generated.images, e.real.images)
    return {"color_distance": sum(row["distance"] for row in table.values()) / len(table), "colors": table}


METRICS: dict[str, Callable[[Evidence], dict]] = {
    "fd": fd, "kid": kid, "precision_recall": manifold, "class_accuracy": class_accuracy,
    "memorization": memorization, "colors": colors,
}  # fmt: skip


def per_class(e: Evidence) -> list[dict[str, object]]:
    """For each class how many images were asked for, the share judged right, and KID, which has no bias at small N,
    against the real images of the class (None below 20 of either).
    """
    right, rows = _right(e.reference.judge, e.generated.images, e.generated.labels), []
    for label, name in enumerate(e.reference.class_names):
        asked, real = (torch.nonzero(z.labels == label)[:, 0] for z in (e.generated, e.real))
        row = {"class": name, "images": len(asked), "real_images": len(real)}
        if len(asked):
            row |= named("class_accuracy", of_share(right[asked]))
        if min(len(asked), len(real)) >= 20:
            row |= named("kid", kernel_distance(e.generated.features[asked], e.real.features[real]))
        rows.append(row)
    return rows


def named(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def labels_like(labels: Tensor, n: int) -> list[int]:
    """Labels of images 0, 1, ... in the proportions of `labels`; that of image k depends on k alone.

    The k-th is found at the fractional part of k times the golden ratio in the sorted labels, which are so gone
    through evenly (Weyl 1916).
    """
    ordered = labels.sort().values
    return [int(ordered[int(k * 0.6180339887498949 % 1 * len(ordered))]) for k in range(n)]
