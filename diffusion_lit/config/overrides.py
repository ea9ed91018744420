"""The words of a command line: read, sweeps spread out, and what is wrong in a word by itself."""

import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from difflib import SequenceMatcher
from itertools import product
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from diffusion_lit.config.schema import MAPPINGS, is_open
from diffusion_lit.config.value_types import format_value

Line = tuple[Override, ...]
CONFIG_DIR: list[str] = []  # the --config-dir of this process, as it is typed


def expand_sweeps(
    overrides: list[str], groups: dict[str, list[str]], multirun: bool
) -> tuple[Iterator[Line], list[str], set[str]]:
    """Every combination of the values of all sweeps (one line without sweeps), without
    the words that are faulty by themselves; what is wrong with those, and their keys.
    """
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    columns, faults, broken = [], [], set()
    for word in overrides:
        try:
            column = _values_of(word, parser, multirun)
            wrong = [fault for override in column if (fault := _word_fault(override, groups))]
        except (HydraException, ValueError) as error:
            wrong = [f"{word}: {str(error).splitlines()[0]}"]
        if wrong:
            faults += wrong
            broken.add(word.partition("=")[0].lstrip("+~"))
        else:
            columns.append(column)
    return product(*columns), faults, broken


def _values_of(word: str, parser: OverridesParser, multirun: bool) -> list[Override]:
    """The override; of a sweep one for each value, of an interval one for each end. Raises ValueError."""
    if word.startswith("-"):
        raise ValueError("no such flag; keys are written key=value, without dashes")
    if "=" not in word and word[:1] != "~":
        raise ValueError("is not of the form key=value")
    try:
        override = parser.parse_override(word)
    except HydraException as error:
        why = str(error).splitlines()[0]
        raise ValueError(f"cannot be read ({why}); text with special signs is quoted: \"key='...'\"") from None
    if not override.is_sweep_override():
        return [override]
    if not multirun:
        raise ValueError("several values are a sweep: add --multirun (a list is written key=[a,b])")
    override.config_loader = parser.config_loader  # for glob(*)
    sweep = override.value()
    values = [sweep.start, sweep.end] if override.is_interval_sweep() else override.sweep_string_iterator()
    column = [parser.parse_override(f"{override.get_key_element()}={value}") for value in values]
    if not column:
        raise ValueError("a sweep without values")
    return column


def _word_fault(override: Override, groups: dict[str, list[str]]) -> str | None:
    key, value = override.key_or_group, override.value()
    if override.is_delete():
        fault = f"{override.input_line}: only arguments of a class can be removed, such as ~optimizer.betas"
        return None if is_open(key) and key not in groups else fault
    if isinstance(value, dict) and key not in (*groups, *MAPPINGS) and not is_open(key):
        return f"{override.input_line}: must be one value or a list"
    if key not in groups or value in groups[key]:
        return None
    names = groups[key]
    return f"{key}={format_value(value)}: no such {key}{did_you_mean(str(value), names)}; there are {', '.join(names)}"


def read_override(key: str, overrides: list[str]) -> object:
    """The last value that the words give a key, as Hydra reads it; None if they give none or it cannot be read."""
    words = [word for word in overrides if word.partition("=")[0] == key]
    with suppress(HydraException):
        return OverridesParser.create().parse_override(words[-1]).value() if words else None
    return None


def format_override(key: str, value: object) -> str:
    """`key=value` as Hydra reads it back, text quoted where it has to be."""
    if not isinstance(value, str | Path):
        return f"{key}={format_value(value)}"
    if re.fullmatch(r"[\w./~-]+", str(value)):
        return f"{key}={value}"
    # Hydra takes a backslash for itself, except before a quote
    text = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + found[2].replace("'", "\\'"), str(value))
    return f"{key}='{text}'"


def format_command(verb: str, *overrides: str) -> str:
    """Return the command line of a follow-up command, which carries the --config-dir of this one."""
    return shlex.join(["python", "-m", f"diffusion_lit.{verb}", *CONFIG_DIR, *overrides])


def did_you_mean(word: str, known: list[str]) -> str:
    """The most alike, as a whole or in the last part: lr is optimizer.lr, a right word in the wrong place."""
    group, _, last = word.rpartition(".")

    def likeness(name: str) -> float:
        group_there, _, last_there = name.rpartition(".")
        within = 0.9 if len(last) > 2 and last in last_there and last != last_there else 0.0
        whole = SequenceMatcher(None, word, name).ratio() if group != group_there else 0.0
        return max(SequenceMatcher(None, last, last_there).ratio(), within, whole)

    close = [name for name in sorted(known, key=likeness, reverse=True)[:3] if likeness(name) > 0.7]
    return f" (did you mean {' or '.join(close)}?)" if close else ""
