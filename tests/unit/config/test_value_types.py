"""The grammar of types in the yaml files."""

from diffusion_lit.config.value_types import describe_type, is_type, matches
from tests.cases import each


@each(
    ("type_", "good", "bad"),
    [
        ("int >= 1", [1, 2**63 - 1], [0, 2**63, 10**400, 1.0, "1", True, None, [1]]),
        ("float in [0, 1]", [0, 1, 0.5], [-0.1, 1.1, float("nan"), float("inf"), "0.5", False, None]),
        ("float in (0, 1)", [0.5], [0, 1]),
        ("null | float > 0", [None, 2], [0]),
        ("1 | 3", [1, 3], [2, True, "1", None]),
        ("bool", [True, False], [1, "true", None]),
        ("str", ["a", "1"], ["", 1, None, True]),
        (
            "folder name",
            ["a b", "...", "é" * 127, "日本"],
            ["", ".", "..", "a/b", "a\\b", "a\n", "\x1b", "é" * 128, "\u2028", 1],
        ),
        ("list[int >= 0] x 2", [[0, 1]], [[0], [0, -1], [0, "1"], 3, None]),
        ("list[str] x 1+", [["a"]], [[], ["a", 1]]),
        ("null | dict[float] | list[dict[float]] x 1+", [None, {"a": 1}, [{"a": 0.5}]], [{}, [], {"a": "b"}, 1]),
        ("list[class]", [[], [{"_target_": "a.B"}]], [[{"a": 1}], {"_target_": "a.B"}]),
        ("last | best | int >= 0", ["last", "best", 0, 300], ["first", -1, True, 1.5, None]),
        ("auto | cpu | mps | cuda | cuda:<n>", ["auto", "cpu", "cuda", "cuda:1"], ["gpu", "cuda:", 0, None]),
        ("null | DD:HH:MM:SS", [None, "00:12:00:00"], ["12:00", 3]),
    ],
)
def test_types(type_, good, bad):
    assert is_type(type_)
    assert [matches(type_, value) for value in good] == [True] * len(good)
    assert [matches(type_, value) for value in bad] == [False] * len(bad)


def test_prose_is_no_type():
    assert not any(map(is_type, ["", "null: the run's own", "px", "the file", "of the leaf | or not"]))
    assert describe_type("auto | cpu") == "one of auto, cpu"
    assert describe_type("null | int >= 1") == "null or int >= 1"
