"""Paired comparisons of evaluations: differences with their intervals, and what they rest on.

Evaluations of the same seeds, labels, features and real images have much in common, which
their difference leaves out. An evaluation writes the influence of each image beside
result.json, so that any two can be compared later.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from diffusion_lit.evaluation.intervals import Estimate, Measurement, standard_error, student_quantile
from diffusion_lit.evaluation.metrics import Comparison
from diffusion_lit.system.files import digest_text, write_atomically

FILE = "influences.npz"
INDISTINGUISHABLE = "cannot be distinguished"


@dataclass(frozen=True)
class Evaluation:
    """A number of one evaluation.

    Args:
        measurement: the number.
        run: the run that was evaluated.
        pairing: a digest of seed, labels, features and real images. Evaluations with the same
            digest are paired image by image.
    """

    measurement: Measurement
    run: str
    pairing: str


@dataclass(frozen=True)
class Difference:
    """A difference of two settings and where its uncertainty comes from.

    Args:
        estimate: the difference with its 95 % interval. Of several runs it holds for other runs
            and other images, of one run for other images.
        sampling: standard error for other images.
        training: standard error for other runs and images; None for one run.
        reference: standard error for other real images; None if it is unknown.
        images: images of each setting.
        images_needed: images at which the difference would be significant in 80 % of comparisons;
            None for equal ones.
    """

    estimate: Estimate
    sampling: float
    training: float | None
    reference: float | None
    images: int
    images_needed: int | None

    def verdict(self, higher_is_better: bool) -> str:
        """Return "better" or "worse", or `INDISTINGUISHABLE` if the interval includes 0."""
        if self.estimate.low <= 0 <= self.estimate.high:
            return INDISTINGUISHABLE
        return "better" if (self.estimate.value > 0) == higher_is_better else "worse"


def save_measurements(folder: Path, comparison: Comparison, result: dict) -> None:
    """Write the influences of an evaluation, with its result.json."""
    settings = result["settings"]
    pairing = {key: settings[key] for key in ("seed", "reference")} | {"features": settings["features"]["digest"]}
    pairing |= {"labels": comparison.generated.labels.tolist()}
    digest = digest_text(json.dumps(pairing, sort_keys=True))
    arrays: dict[str, np.ndarray] = {"run": np.array(result["run"]), "pairing": np.array(digest)}
    for name, measured in comparison.measurements.items():
        arrays[f"{name}/value"] = np.array(measured.value)
        arrays[f"{name}/generated"] = measured.generated.cpu().numpy().astype(np.float32)
        if measured.real is not None:
            arrays[f"{name}/real"] = measured.real.cpu().numpy().astype(np.float32)
    with write_atomically(folder / FILE) as unfinished, open(unfinished, "wb") as file:
        np.savez_compressed(file, **arrays)


def load_evaluation(folder: Path, name: str) -> Evaluation | None:
    """Return a number of an evaluation with its influences; None if it has none."""
    if not (folder / FILE).exists():
        return None
    with np.load(folder / FILE) as file:
        if f"{name}/value" not in file:
            return None
        real = torch.from_numpy(file[f"{name}/real"]).double() if f"{name}/real" in file else None
        generated = torch.from_numpy(file[f"{name}/generated"]).double()
        measured = Measurement(float(file[f"{name}/value"]), generated, real)
        return Evaluation(measured, str(file["run"]), str(file["pairing"]))


def compare(a: Sequence[Evaluation], b: Sequence[Evaluation]) -> Difference | None:
    """Return a less b, over several seeds and runs.

    It is None if they are not of the same seeds and real images.
    The k-th evaluation of a is paired with the k-th of b.
    """
    if not a or [one.pairing for one in a] != [one.pairing for one in b]:
        return None
    differences = [x.measurement - y.measurement for x, y in zip(a, b, strict=True)]
    runs = [(x.run, y.run) for x, y in zip(a, b, strict=True)]
    mean = _average(differences)
    needed = mean.images_needed()
    estimate, training = mean.interval(), None
    if len(set(runs)) > 1:
        of_run = [
            [d.value for d, run in zip(differences, runs, strict=True) if run == one] for one in dict.fromkeys(runs)
        ]
        means = torch.tensor([sum(values) / len(values) for values in of_run], dtype=torch.double)
        training = standard_error(means)
        half = student_quantile(len(means) - 1) * training
        estimate = Estimate(mean.value, mean.value - half, mean.value + half)
    sampling, images = standard_error(mean.generated), len(mean.generated)
    return Difference(estimate, sampling, training, mean.reference_error(), images, needed)


def _average(measurements: Sequence[Measurement]) -> Measurement:
    """Return the mean of measurements of different generated images with the same real ones."""
    value = math.fsum(one.value for one in measurements) / len(measurements)
    generated = torch.cat([one.generated for one in measurements])
    real = [one.real for one in measurements if one.real is not None]
    return Measurement(value, generated, torch.stack(real).mean(0) if len(real) == len(measurements) else None)
