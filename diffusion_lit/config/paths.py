"""Paths in a `data` group: stored absolute in a run, and found again beside a run folder that was moved."""

import os
from collections.abc import Callable
from pathlib import Path

from diffusion_lit.config.value_types import map_leaves

PATH_KEYS = ("root", "images", "path", "labels", "sources", "exclude", "cache_dir")  # of sources, and in data.dataset
FOLDER_KEYS = ("root", "cache_dir")  # may be made later
NOT_PATHS = ("auto", "none")


def map_paths(data: dict, function: Callable[[str, str], str]) -> dict:
    """Return a `data` group with `function(key, text)` in place of each text that may be a path."""

    def convert(key: str, value: object) -> object:
        is_path = key in PATH_KEYS and isinstance(value, str) and value not in NOT_PATHS
        return function(key, value) if is_path else value

    return map_leaves(data, convert)


def make_absolute(data: dict) -> dict:
    """Return a `data` group with absolute paths.

    Other texts, such as ids of the hub, stay as they are.
    """

    def convert(key: str, text: str) -> str:
        path = os.path.abspath(os.path.expanduser(text))
        return path if "://" not in text and (key in FOLDER_KEYS or os.path.exists(path)) else text

    return map_paths(data, convert)


def relocate(data: dict, before: str | Path, now: Path) -> dict:
    """Return a `data` group of a run folder that was moved.

    A path that no longer exists is replaced by the one at the same place relative
    to the run, if that exists.

    Args:
        data: with absolute paths.
        before: where the run was.
        now: where it is.
    """

    def convert(key: str, text: str) -> str:
        if not os.path.isabs(text) or os.path.exists(text):
            return text
        beside = os.path.normpath(os.path.join(os.path.abspath(now), os.path.relpath(text, before)))
        return beside if os.path.exists(beside) else text

    return map_paths(data, convert) if os.path.isabs(before) else data
