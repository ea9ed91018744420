"""Classes by name and by index, as the command line passes them on."""

import unicodedata

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from diffusion_lit.sampling.labels import parse_class

CAFE, CAFE_NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def typed(text: str) -> object:
    (value,) = OverridesParser.create().parse_override(f"classes=[{text}]").value()
    return value


def test_names_that_look_like_numbers_need_no_quotes():
    names = ["1_000", "1e3x", "true", "1e-3", "1_0", "01", "-1", "Inf", "1.50", "20"]
    for k, name in enumerate(names):
        assert parse_class(typed(name), names) == k, name
        assert parse_class(name, names) == k, name
    assert parse_class(CAFE_NFD, ["a", CAFE]) == 1
    for value in (1, np.int64(1), np.uint8(1)):
        assert parse_class(value, ["a", "b"]) == 1


def test_what_is_no_class():
    for value in (2, -1, True, None, 0.0, 0.5, "c", [0]):
        with pytest.raises(ValueError, match="not a class of this run. Choose from 0 a, 1 b"):
            parse_class(value, ["a", "b"])
    with pytest.raises(ValueError, match="29 k29 and 70 more"):
        parse_class("x", [f"k{k}" for k in range(100)])
