"""`Pipeline` with what Python code passes: one class, arrays of classes, none of them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion_lit.runs.pipeline import Pipeline
from tests.cases import each

DIGITS = Path(__file__).parents[3] / "models" / "digits"


@pytest.fixture(scope="module")
def digits() -> Pipeline:
    return Pipeline.from_pretrained(DIGITS, device="cpu")


@each("classes", [3, "3", ("3",), [np.int64(3)], np.array([3]), np.int64(3), torch.tensor([3])])
def test_a_class_may_come_in_any_form(digits, classes):
    expected = digits(["3"], num_images=1, output_type="np", progress=False)
    assert np.array_equal(digits(classes, num_images=1, output_type="np", progress=False), expected)


@each(("request_", "message"), [
    ({"classes": []}, r"classes=\[\]: has no class. Name one or more"),
    ({"classes": True}, "True: not a class"),
    ({"classes": 10}, "10: not a class"),
    ({"num_images": 0}, "num_images=0: must be 1 or more"),
    ({"num_images": -1}, "num_images=-1: must be 1 or more"),
    ({"negative_prompt": "two"}, "negative_prompt: this model has no prompts"),
    ({"output_type": "latent"}, "output_type='latent': must be one of pil, np, pt"),
])  # fmt: skip
def test_what_cannot_be_generated_is_refused(digits, request_, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        digits(**{"num_images": 1} | request_, progress=False)
