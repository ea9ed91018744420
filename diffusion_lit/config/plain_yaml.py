"""Read YAML that a stranger may have written: plain data of limited size, in which nothing is resolved."""

from copy import deepcopy
from functools import lru_cache

import yaml
from omegaconf._utils import get_yaml_loader

MAX_BYTES = 2**20
MAX_VALUES = 50_000  # after aliases are written out
MAX_DEPTH = 32
# hold names and paths of the user, which may contain any sign
TEXT_KEYS = ("data", "name", "run_dir", "resume", "init_from", "distill")


def parse_plain_yaml(text: str) -> dict:
    """Return the mapping of a YAML text.

    Aliases are counted before they are written out, since few lines of them can
    stand for any number of values. Interpolations are refused, not resolved:
    `${oc.env:...}` would read the environment of whoever loads the file.

    Raises:
        ValueError: if the text is too large, too deep, no mapping, or has
            interpolations.
        YAMLError: if it is no YAML.
    """
    return deepcopy(_parse_once(text))


@lru_cache(maxsize=8)  # a command reads config.yaml up to six times, and parsing takes up to a tenth of a second
def _parse_once(text: str) -> dict:
    if len(text) > MAX_BYTES:
        raise ValueError(f"it has {len(text):,} characters, more than {MAX_BYTES:,}")
    _count_values(text)
    tree = get_yaml_loader()(text).get_single_data()
    if not isinstance(tree, dict):
        raise ValueError("it must be a mapping of keys to values")
    if key := next(_find_interpolations({key: value for key, value in tree.items() if key not in TEXT_KEYS}, ""), None):
        raise ValueError(f"{key} has an interpolation, ${{...}}. Write its value")
    return tree


def _count_values(text: str) -> None:
    """Raise ValueError if a YAML text is nested too deeply or has too many values."""
    opened: list = [(None, 0)]  # anchor of each open collection, and its values so far
    anchors: dict[str, int] = {}
    for event in yaml.parse(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        anchor = getattr(event, "anchor", None)
        if isinstance(event, yaml.CollectionStartEvent):
            opened.append((anchor, 1))
            if len(opened) > MAX_DEPTH:
                raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, count = opened.pop()
        elif isinstance(event, yaml.AliasEvent):
            anchor, count = None, anchors.get(anchor, MAX_VALUES + 1)  # unknown: an alias inside of its own anchor
        elif isinstance(event, yaml.ScalarEvent):
            count = 1
        else:
            continue
        if anchor:
            anchors[anchor] = count
        opened[-1] = (opened[-1][0], opened[-1][1] + count)
        if opened[-1][1] > MAX_VALUES:
            raise ValueError(f"it has more than {MAX_VALUES:,} values, with its aliases written out")


def _find_interpolations(tree: object, key: str):
    """Yield the dotted keys of texts that OmegaConf would resolve."""
    if isinstance(tree, dict | list):
        for name, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _find_interpolations(str(name), f"{key}{name}")
            yield from _find_interpolations(value, f"{key}{name}.")
    elif isinstance(tree, str) and "${" in tree:
        yield key.rstrip(".")
