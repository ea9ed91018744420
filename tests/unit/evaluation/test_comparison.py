"""Paired comparisons of evaluations, stored and loaded, over seeds and over runs."""

import math
from types import SimpleNamespace

import pytest
import torch

from diffusion_lit.evaluation.comparison import (
    INDISTINGUISHABLE,
    Evaluation,
    compare,
    load_evaluation,
    save_measurements,
)
from diffusion_lit.evaluation.intervals import Measurement, measure_mean

SHARED = torch.randn(200, generator=torch.Generator().manual_seed(0)).double() * 5


def evaluate(seed: int, shift: float, run: str = "a", pairing: str = "0") -> Evaluation:
    own = torch.randn(200, generator=torch.Generator().manual_seed(seed)).double()
    return Evaluation(measure_mean(SHARED + own + shift), run, pairing)


def test_a_stored_measurement_is_the_one_that_was_saved(tmp_path):
    measured = Measurement(0.25, torch.randn(30).double(), torch.randn(40).double())
    settings = {"seed": 0, "reference": {"split": "train"}, "features": {"digest": "0"}}
    result, labels = {"run": "run", "settings": settings}, torch.zeros(30)
    compared = SimpleNamespace(generated=SimpleNamespace(labels=labels))
    compared.measurements = {"kid": measured, "class_accuracy": measure_mean(SHARED)}
    save_measurements(tmp_path, compared, result)
    found = load_evaluation(tmp_path, "kid")
    assert (found.run, found.measurement.value) == ("run", 0.25)
    torch.testing.assert_close(found.measurement.generated, measured.generated, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found.measurement.real, measured.real, atol=1e-6, rtol=1e-6)
    assert load_evaluation(tmp_path, "class_accuracy").measurement.real is None
    assert load_evaluation(tmp_path, "fd") is None
    assert load_evaluation(tmp_path / "nowhere", "kid") is None
    save_measurements(tmp_path, compared, result | {"settings": settings | {"seed": 1}})
    assert load_evaluation(tmp_path, "kid").pairing != found.pairing


def test_a_paired_difference_is_found_that_two_intervals_hide():
    a, b = evaluate(1, 0.5), evaluate(2, 0.0)
    assert a.measurement.interval().low < b.measurement.interval().high
    found = compare([a], [b])
    assert found.verdict(higher_is_better=True) == "better"
    assert found.verdict(higher_is_better=False) == "worse"
    assert found.training is None
    assert found.sampling == pytest.approx(2**0.5 / 200**0.5, rel=0.15)
    assert compare([evaluate(1, 0.0)], [evaluate(2, 0.0)]).verdict(True) == INDISTINGUISHABLE
    needed = compare([a], [b]).images_needed
    assert needed == pytest.approx(200 * (2.8 * found.sampling / found.estimate.value) ** 2, abs=1)


def test_evaluations_of_other_seeds_or_numbers_are_not_compared():
    assert compare([evaluate(1, 0.5)], [evaluate(2, 0.0, pairing="1")]) is None
    assert compare([evaluate(1, 0.5)], []) is None
    assert compare([], []) is None


def test_seeds_narrow_the_interval_and_runs_have_their_own():
    """Runs whose quality varies by 1 are indistinguishable with many images of three runs each."""
    seeds = [[evaluate(k + 10 * side, 0.0, pairing=str(k)) for k in range(4)] for side in (1, 2)]
    one, four = compare(seeds[0][:1], seeds[1][:1]), compare(*seeds)
    assert four.sampling == pytest.approx(one.sampling / 2, rel=0.2)
    assert four.images == 800
    quality = [[1.0, -1.0, 0.5], [0.2, 0.3, -1.2]]
    runs = [[evaluate(k + 10 * side, q, f"{side}{k}") for k, q in enumerate(quality[side])] for side in (0, 1)]
    found = compare(*runs)
    means = [x.measurement.value - y.measurement.value for x, y in zip(*runs, strict=True)]
    assert found.estimate.value == pytest.approx(sum(means) / 3)
    assert found.training == pytest.approx(torch.tensor(means).std().item() / math.sqrt(3), rel=1e-4)
    assert found.estimate.high - found.estimate.value == pytest.approx(4.303 * found.training, rel=1e-3)
    assert found.training > 3 * found.sampling
