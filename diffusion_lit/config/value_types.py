"""The types in the comments of the yaml files, and the check of a value against one.

A type is one alternative or several, separated by " | ":

    int, float            also with a range: int >= 1, float > 0, float in [0, 1)
    bool, str             str is not empty
    folder name           a str that is the name of one folder in another
    null
    list[T]               list[T] x 2: of two; list[T] x 1+: not empty
    dict[T]               names of the user's own to values of type T, not empty
    class                 a mapping with `_target_`
    DD:HH:MM:SS           a duration
    anything else         this text itself, or this number; <n> stands for a number
"""

import json
import math
import re
from collections.abc import Callable

from diffusion_lit.system.console import CONTROLS, escape_controls

NUMBER = re.compile(r"(int|float)(?: (>=|>) (\S+)| in ([\[(])(\S+), (\S+)([\])]))?")
COLLECTION = re.compile(r"(list|dict)\[(.+)\](?: x (\d+)(\+)?)?")
DURATION = re.compile(r"\d+:\d\d:\d\d:\d\d")
MAX_INT = 2**63 - 1
MAX_NAME_BYTES = 255  # of a file name on every common file system
NAMED_TYPES = ("bool", "str", "folder name", "null", "class", "DD:HH:MM:SS")
FOLDER_NAME = f"a folder name (at most {MAX_NAME_BYTES} bytes, no / \\ or control characters, not . or ..)"


def is_type(text: str) -> bool:
    """Return whether a text is a type; one name that could be prose is none."""
    parts = split_alternatives(text)
    plain = [NUMBER.fullmatch(part) or COLLECTION.fullmatch(part) or part in NAMED_TYPES for part in parts]
    return any(plain) or (len(parts) > 1 and " " not in "".join(parts))


def matches(text: str, value: object) -> bool:
    """Return whether a value has a type."""
    return any(_matches_alternative(part, value) for part in split_alternatives(text))


def _matches_alternative(part: str, value: object) -> bool:
    if number := NUMBER.fullmatch(part):
        return _matches_number(*number.groups(), value)
    if collection := COLLECTION.fullmatch(part):
        return _matches_collection(*collection.groups(), value)
    if part == "any":
        return True
    if part == "DD:HH:MM:SS":
        return isinstance(value, str) and DURATION.fullmatch(value) is not None
    if part == "folder name":
        return isinstance(value, str) and _is_folder_name(value)
    if part == "class":
        return isinstance(value, dict) and isinstance(value.get("_target_"), str)
    if part in ("null", "bool", "str"):
        kind = {"null": type(None), "bool": bool, "str": str}[part]
        return isinstance(value, kind) and value != ""
    if "<n>" in part:
        return re.fullmatch(re.escape(part).replace("<n>", r"\d+"), str(value)) is not None
    return not isinstance(value, bool) and value == (int(part) if part.isdigit() else part)


def _is_folder_name(text: str) -> bool:
    if text in ("", ".", ".."):
        return False
    if "/" in text or "\\" in text or CONTROLS.search(text):
        return False
    return len(text.encode("utf-8", "surrogatepass")) <= MAX_NAME_BYTES


def _matches_number(kind, sign, least, left, low, high, right, value: object) -> bool:
    kinds = int if kind == "int" else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds):
        return False
    if abs(value) > MAX_INT if isinstance(value, int) else not math.isfinite(value):
        return False
    low, high = float(least or low or -math.inf), float(high or math.inf)
    is_above = value > low if sign == ">" or left == "(" else value >= low
    return is_above and (value < high if right == ")" else value <= high)


def _matches_collection(kind: str, inner: str, count: str | None, more: str | None, value: object) -> bool:
    if kind == "dict":
        return isinstance(value, dict) and bool(value) and all(matches(inner, x) for x in value.values())
    if not isinstance(value, list) or not all(matches(inner, x) for x in value):
        return False
    return count is None or len(value) == int(count) or (more is not None and len(value) > int(count))


def split_alternatives(text: str) -> list[str]:
    """Return the parts of a type between the " | " that are outside of brackets."""
    parts, depth = [""], 0
    for token in re.split(r"( \| |[\[\](),])", text):
        depth += (token in ("[", "(")) - (token in ("]", ")"))
        if token == " | " and depth == 0:
            parts.append("")
        else:
            parts[-1] += token
    return parts


def type_of(default: object) -> str:
    """Return the type of a key whose comment has none: that of its default, and any for null."""
    if isinstance(default, list):
        return f"list[{type_of(default[0])}]" if default else "list[any]"
    return {bool: "bool", int: "int", float: "float", str: "str"}.get(type(default), "any")


def describe_type(text: str) -> str:
    """Return a type as error messages print it."""
    parts = split_alternatives(text)
    is_choice = not any(NUMBER.fullmatch(p) or COLLECTION.fullmatch(p) or p in ("bool", "str") for p in parts)
    if is_choice and len(parts) > 1:
        return f"one of {', '.join(parts)}"
    return " or ".join(FOLDER_NAME if part == "folder name" else part for part in parts)


def format_value(value: object) -> str:
    """Return a value as it is written on a command line, in one line."""
    return escape_controls(value) if isinstance(value, str) else json.dumps(value, default=str)


def map_leaves(tree, function: Callable[[str, object], object], key: str = ""):
    """Return a tree of mappings and lists with `function(key, leaf)` in place of each leaf."""
    if isinstance(tree, dict):
        return {name: map_leaves(value, function, str(name)) for name, value in tree.items()}
    return [map_leaves(value, function, key) for value in tree] if isinstance(tree, list) else function(key, tree)


def quote_texts(value: str) -> str:
    """Return a value as it is typed, or each item of a list, in quotes, so that Hydra reads it as text."""
    if items := re.fullmatch(r"\[([^\[\]{}'\"]+)\]", value):
        return f"[{','.join(quote(item.strip()) for item in items[1].split(','))}]"
    return value if re.fullmatch(r"'.*'|\".*\"", value) else quote(value)


def escape_interpolations(text: str) -> str:
    """Return text in which every ${ stands for itself."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def quote(text: str) -> str:
    """Return text in quotes from which Hydra reads the same text."""
    if '"' not in text and not text.endswith("\\"):
        return f'"{text}"'
    # Hydra reads a backslash as itself, except before a quote
    return "'" + re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + match[2].replace("'", "\\'"), text) + "'"
