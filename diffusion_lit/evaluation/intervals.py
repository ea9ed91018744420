"""Estimates with 95 % confidence intervals.

An interval holds for the real images as they are: it says how much the number would move
with other generated images. How much it would move with other real images is a separate
number, `Measurement.reference_error`.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

POWER = 2.8  # standard errors at which a difference is found in 80 % of comparisons: 1.96 + 0.84


class Estimate(NamedTuple):
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float

    def entries(self, name: str) -> dict[str, float]:
        """Return the three entries of result.json: `name`, `name`_low, `name`_high."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


@dataclass(frozen=True)
class Measurement:
    """A number of N generated and M real images, with the influence of each image on it.

    The influence of an image is the derivative of the number by the weight of the
    image (Hampel 1974). Numbers of equally many images of the same seeds can be
    subtracted: the interval of the difference leaves out what both have in
    common.

    Args:
        value: the number.
        generated: influences of the generated images, (N,), with mean 0.
        real: influences of the real images, (M,), with mean 0; None if it is unknown.
    """

    value: float
    generated: Tensor
    real: Tensor | None = None

    def interval(self) -> Estimate:
        """Return the number with its interval for other generated images.

        value ± t(0.975, N - 1) s / sqrt(N).
        """
        half = student_quantile(len(self.generated) - 1) * standard_error(self.generated)
        return Estimate(self.value, self.value - half, self.value + half)

    def reference_error(self) -> float | None:
        """Return the standard error for other real images."""
        return None if self.real is None else standard_error(self.real)

    def __sub__(self, other: "Measurement") -> "Measurement":
        real = None if self.real is None or other.real is None else self.real - other.real
        return Measurement(self.value - other.value, self.generated - other.generated, real)

    def stratify(self, labels: Tensor) -> "Measurement":
        """Return the measurement for a fixed number of images of each class (Cochran 1977, section 5).

        Differences between classes then move the number no more: the influences are relative to
        the mean of their class.

        Args:
            labels: int64 (N,).
        """
        generated = self.generated.clone()
        for label in labels.unique():
            members = labels == label
            if (n := int(members.sum())) > 1:
                part = generated[members]
                generated[members] = (part - part.mean()) * math.sqrt(n / (n - 1))
        return Measurement(self.value, generated, self.real)

    def images_needed(self) -> int | None:
        """Return the number of images at which this difference is significant in 80 % of comparisons.

        It is None for no difference.
        """
        if not self.value:
            return None
        return math.ceil(len(self.generated) * (POWER * standard_error(self.generated) / self.value) ** 2)


def standard_error(influences: Tensor) -> float:
    """Return s / sqrt(N) of N >= 2 influences."""
    return influences.double().std().item() / math.sqrt(len(influences))


def measure_mean(numbers: Tensor) -> Measurement:
    """Return the mean of one number for each generated image, (N,)."""
    numbers = numbers.double()
    return Measurement(numbers.mean().item(), numbers - numbers.mean())


def proportion_interval(hits: Tensor) -> Estimate:
    """Return the share of True among N independent booleans, with the score interval (Wilson 1927)."""
    n, share, z2 = len(hits), hits.double().mean().item(), 1.959964**2
    center = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    low, high = max(0.0, center - half), min(1.0, center + half)
    return Estimate(share, min(low, share), max(high, share))  # rounding leaves 1e-17 of a 0


def student_quantile(freedom: int) -> float:
    """Return t(0.975) of Student's distribution with so many degrees of freedom."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.975))


def fixed_permutation(n: int, seed: int = 0) -> Tensor:
    """Return 0 .. n - 1 in a fixed random order, to split sets that are sorted, by class for example."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))
