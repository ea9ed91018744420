"""The keys of the configuration: default, type and meaning of each, from the yaml files.

The comment of a key is its type, then its meaning:

    lr: 0.001 # float > 0. Learning rate after warm-up

`config/value_types.py` has the grammar of types. The check of the command line,
`--help` and docs/reference.md read these comments, so a new key needs its line in a
yaml file and nothing else, except that one which a resumed run may change is also
added to `CHANGEABLE` in `runs/resume.py`. A file may leave the type or the meaning
to the others of its group.
"""

import re
import shlex
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

from diffusion_lit.config.value_types import (
    MAX_INT,
    describe_type,
    format_value,
    is_type,
    matches,
    quote_texts,
    type_of,
)

LINE = re.compile(r"(?!defaults|hydra)(\w+): ([^#]*?)(?: # (.*))?")
FIGURES = ("forward", "panels", "schedule", "losses", "denoising", "samplers", "curves")  # in drawing order
MAPPINGS = ("context",)  # keys whose value is a mapping with the user's own names
# nodes that take more keys than their yaml has
OPEN = ("optimizer", "trainer", "callbacks", "logger", "data.dataset", "data.val_dataset")
# endings of keys that the choice of a group decides
FIXED = ("._target_", ".process", "lr_schedule.name", "distill.name")


class Key(NamedTuple):
    """A key as its line in a yaml file describes it."""

    default: str
    type: str
    meaning: str


@cache
def read_keys(file: Path) -> dict[str, Key]:
    """Return the keys of a yaml file by name.

    Type or meaning is empty where the comment has none.
    """
    keys = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        if match := LINE.fullmatch(line):
            name, default, comment = match.groups(default="")
            first, _, rest = comment.partition(". ")
            keys[name] = Key(default, first, rest) if is_type(first) else Key(default, "", comment)
    return keys


def read_group_keys(file: Path, others: Iterable[Path]) -> dict[str, Key]:
    """Return the keys of a yaml file of a group.

    What their comments leave out is taken from the `others`.
    """
    keys = dict(read_keys(file))
    for other in others:
        for name, (_, type_, meaning) in read_keys(other).items():
            if name in keys:
                own = keys[name]
                keys[name] = Key(own.default, own.type or type_, own.meaning or meaning)
    return keys


def value_fault(key: str, value: object, default: object, type_: str, typed: str | None = None) -> str | None:
    """Return why a key cannot have this value, or None if it can.

    Args:
        key: dotted name.
        value: resolved value.
        default: value in the yaml file.
        type_: type in the yaml file; if empty, that of the default.
        typed: the value as it stands on the command line, where it does.
    """
    if key.endswith(FIXED) and value != default and not is_open(key):
        group = key.partition(".")[0]
        return f"{key}={format_value(value)}: fixed by the choice of {group}. Choose another one with {group}=<name>"
    if re.search(r"[\ud800-\udfff]", str(value)):
        encoding = sys.getfilesystemencoding()
        advice = "Rename the file or folder" if encoding == "utf-8" else "Set PYTHONUTF8=1"
        return f"{key}={format_value(value)}: has bytes that are not {encoding.upper()}. {advice}"
    type_ = type_ or type_of(default)
    if type_ == "any" or matches(type_, value):
        return None
    fault = f"{key}={format_value(value)}: must be {describe_type(type_)}"
    if value == "":
        return f"{fault}, not empty"
    if isinstance(value, int) and abs(value) > MAX_INT:
        return f"{fault}, less than 2^63"
    if matches(type_, [value]):
        return f"{fault}. Write {key}=[{format_value(value)}]"
    if isinstance(value, float) and value.is_integer() and matches(type_, int(value)):
        is_interval = typed is not None and "interval(" in typed  # draws floats; a cast makes it draw whole numbers
        return f"{fault}. Write {key}={f'int({typed})' if is_interval else int(value)}"
    texts = [str(item) for item in value] if isinstance(value, list) else str(value)
    if value is not None and not isinstance(value, str | dict) and matches(type_, texts):
        return f"{fault}. If it is text, quote it: {shlex.quote(f'{key}={quote_texts(typed or format_value(value))}')}"
    return fault


def is_open(key: str) -> bool:
    """Return whether a key is an argument of a class that the user chooses, so that any name is possible."""
    return any(f"{key}.".startswith(f"{node}.") for node in OPEN)
