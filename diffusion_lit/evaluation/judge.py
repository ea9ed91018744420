"""A judge of generated images: a classifier of real ones, asked which class each generated one is."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.svm import SVC
from torch import Tensor

from diffusion_lit.data.store import ImageStore


@dataclass(frozen=True)
class Verdict:
    """Shares in [0, 1]: generated images judged to be the class they were asked to be, and real held-out ones."""

    generated: float
    real: float


class PixelJudge:
    """A support-vector classifier on pixels, trained on the training pictures; right for digits, not for photos."""

    def __init__(self, train: ImageStore, val: ImageStore):
        self.classifier = SVC(C=10, gamma=0.001 * 16**2).fit(_pixels(train.images), train.labels)
        self.real = float(self.classifier.score(_pixels(val.images), val.labels))

    def judge(self, images: Tensor, labels: Sequence[int]) -> Verdict:
        """Images uint8 (N, C, H, W) and the classes they were asked to be, (N,)."""
        judged = self.classifier.predict(_pixels(images.numpy()))
        return Verdict(float(np.mean(judged == np.asarray(labels))), self.real)


def _pixels(images: np.ndarray) -> np.ndarray:
    """(N, C, H, W) uint8 to (N, C H W) in [0, 1]."""
    return images.reshape(len(images), -1) / 255.0
