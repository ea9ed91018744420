"""The classifier of the digits that comes with the package: for the digits alone, and right as often as documented."""

import shutil

import pytest
import torch

from benchmarks.digits_classifier import count_errors, load_digits
from diffusion_lit.evaluation import digits_classifier
from diffusion_lit.evaluation.classifier import Classifier
from diffusion_lit.evaluation.digits_classifier import WEIGHTS, load_digits_classifier
from diffusion_lit.evaluation.features import RealImages, make_classifier
from diffusion_lit.system.errors import UserError

DIGEST = "bb54f0f0a0b8b5f9"  # of the published numbers of the digits
ERRORS = 13  # of 359: the 96.4 % of README and BENCHMARKS.md


def test_the_digits_are_measured_by_the_weights_of_the_package(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("trained or read from the cache")

    monkeypatch.setattr("diffusion_lit.evaluation.features.load_or_make", refuse)
    train, val = load_digits()
    images = RealImages(train, val, 10, False, "bicubic", torch.device("cpu"))
    extractor = make_classifier(images)
    assert extractor.digest == DIGEST
    assert count_errors(extractor.network, val) == ERRORS
    assert extractor.facts["class_accuracy_real"] == pytest.approx(1 - ERRORS / len(val))
    assert f"{extractor.facts['class_accuracy_real']:.1%}" == "96.4%"


def test_other_images_classes_and_flips_have_a_classifier_of_their_own():
    fingerprint = load_digits()[0].fingerprint
    weights = load_digits_classifier(fingerprint, 10, False)
    Classifier(1, 10).load_state_dict(weights)
    for arguments in ((fingerprint[::-1], 10, False), (fingerprint, 11, False), (fingerprint, 10, True)):
        assert load_digits_classifier(*arguments) is None


def test_damaged_weights_are_refused(monkeypatch, tmp_path):
    copy = tmp_path / WEIGHTS.name
    shutil.copy(WEIGHTS, copy)
    monkeypatch.setattr(digits_classifier, "WEIGHTS", copy)
    data = bytearray(copy.read_bytes())
    data[-1] ^= 1  # one bit of one weight
    copy.write_bytes(data)
    with pytest.raises(UserError, match=r"is damaged \(checksum\). Install diffusion_lit again") as caught:
        load_digits_classifier("", 10, False)
    assert caught.value.exit_code == 3
    copy.write_bytes(data[:1000])
    with pytest.raises(UserError, match="is damaged"):
        load_digits_classifier("", 10, False)
