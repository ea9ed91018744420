"""The overrides of a command line: parsed by Hydra's grammar, sweeps expanded, each checked by itself."""

import math
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import chain, islice, product
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, RangeSweep, Sweep
from hydra.errors import HydraException

from diffusion_lit.config.schema import MAPPINGS, is_open
from diffusion_lit.config.value_types import escape_interpolations, format_value, quote, quote_texts

MAX_JOBS = 1000  # of a sweep: each is composed and checked before the first one starts, in 20 ms
HYDRA_FAULTS = {  # keys of Hydra that cannot be changed here -> what to do instead
    "hydra.output_subdir": "a run folder has its own config.yaml and command.txt. Leave it out",
    "hydra.job.chdir": "paths are relative to where the command starts. Use run_dir=",
    "hydra.sweep.subdir": "the jobs of a sweep are numbered. Leave it out",
    "hydra/job_logging": "log lines are those of diffusion_lit. Use hydra.verbose=true for more of them",
    "hydra.help": "--help lists keys and groups",
}
COMMAND_START = re.compile(r"\n(?=python -m diffusion_lit\.)")
CONFIG_DIR: list[str] = []  # --config-dir of this process, as it was typed


@dataclass
class IntervalEnd(Override):
    """An override with one end of an interval, by which the interval is checked, and the interval as it was typed."""

    interval: str = ""


def expand_sweeps(
    texts: list[str], groups: dict[str, list[str]], multirun: bool
) -> tuple[Iterator[tuple[Override, ...]], list[str], set[str]]:
    """Parse overrides and combine the values of all sweeps.

    Args:
        texts: overrides as they were typed.
        groups: config groups and their choices.
        multirun: whether sweeps are allowed.

    Returns:
        One tuple of overrides for each combination, without the faulty overrides;
        the faults; the keys of the faulty overrides. A sweeper that draws from more
        than `MAX_JOBS` combinations has each value once instead.
    """
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    columns, faults, faulty_keys = [], [], set()
    for text in texts:
        try:
            column = _parse_values(text, parser, multirun)
            own_faults = [fault for override in column if (fault := _find_fault(override, groups))]
        except (HydraException, ValueError) as error:
            own_faults = [f"{text}: {str(error).splitlines()[0]}"]
        if own_faults:
            faults += own_faults
            faulty_keys.add(text.partition("=")[0].lstrip("+~"))
        else:
            columns.append(column)
    jobs = math.prod(map(len, columns))
    if jobs <= MAX_JOBS:
        return product(*columns), faults, faulty_keys
    if not any(text.startswith("hydra/sweeper=") for text in texts):
        faults.append(f"--multirun: {jobs:,} jobs are too many, at most {MAX_JOBS:,} are possible. Sweep fewer values")
    first = [column[0] for column in columns]
    each = ((*first[:k], value, *first[k + 1 :]) for k, column in enumerate(columns) for value in column[1:])
    return chain([tuple(first)], each), faults, faulty_keys


def _parse_values(text: str, parser: OverridesParser, multirun: bool) -> list[Override]:
    """Return the override; for a sweep one per value, for an interval its two ends."""
    if text.startswith("-"):
        raise ValueError("unknown flag. Write keys as key=value, without dashes")
    if "=" not in text and text[:1] != "~":
        raise ValueError(f"must have the form key=value{_suggest_folder(text)}")
    try:
        override = parser.parse_override(text)
    except HydraException as error:
        raise ValueError(f"cannot be parsed ({_explain_syntax(text, error)}). {_suggest_quotes(text)}") from None
    if not override.is_sweep_override():
        return [override]
    if not multirun:
        raise ValueError("several values need --multirun. Write a list as key=[a,b]")
    override.config_loader = parser.config_loader  # glob(*) needs it
    sweep = override.value()
    if isinstance(sweep, RangeSweep) and (count := _count_values(sweep)) > MAX_JOBS:
        raise ValueError(f"{count:,} values are too many, at most {MAX_JOBS:,} are possible. Use a larger step")
    if isinstance(sweep, ChoiceSweep) and any(isinstance(value, Sweep) for value in sweep.list):
        raise ValueError("a range, glob or sort cannot be one value of several. Write all values, such as key=0,1,2")
    values = [sweep.start, sweep.end] if override.is_interval_sweep() else override.sweep_string_iterator()
    column = [parser.parse_override(f"{override.get_key_element()}={value}") for value in islice(values, MAX_JOBS + 1)]
    if override.is_interval_sweep():
        return [IntervalEnd(**vars(end), interval=text.partition("=")[2]) for end in column]
    if not column:
        raise ValueError("the sweep has no values")
    return column


def _explain_syntax(text: str, error: HydraException) -> str:
    """Return what is wrong with an override, in place of the list of symbols that the parser expects."""
    value = text.partition("=")[2]
    if re.search(r"[,\[({]\s*,|,\s*($|[\])}])", value):
        return "a value is missing beside a comma"
    return re.sub(r"^\w+ while evaluating '.*?': ", "", str(error).splitlines()[0])


def _count_values(sweep: RangeSweep) -> int:
    """Return the number of values of a range without making them.

    Raises:
        ValueError: for a range that never ends.
    """
    if not sweep.step or not all(map(math.isfinite, (sweep.start, sweep.stop, sweep.step))):
        raise ValueError("start, stop and step must be finite numbers, and the step not 0")
    return max(0, math.ceil((sweep.stop - sweep.start) / sweep.step))


def _suggest_quotes(text: str) -> str:
    """Return the same override with its text in quotes, as it is typed in a shell."""
    key, sign, value = text.partition("=")
    if not sign or not re.fullmatch(r"[+~]*[\w./@]+", key, re.ASCII):
        return "Quote text with special characters: \"key='...'\""
    return f"If it is text, quote it: {shlex.quote(f'{key}={quote_texts(escape_interpolations(value))}')}"


def _find_fault(override: Override, groups: dict[str, list[str]]) -> str | None:
    key, value, text = override.key_or_group, override.value(), override.input_line
    for name, advice in HYDRA_FAULTS.items():
        if f"{key}.".startswith(f"{name}."):
            return f"{text}: cannot be changed, {advice}"
    if override.package is not None:
        return f"{text}: @{override.package} cannot be set on the command line. Write {key}=..."
    if override.is_delete():
        if is_open(key) and key not in groups:
            return None
        return f"{text}: only arguments of a class can be removed, such as ~optimizer.betas"
    if isinstance(value, dict) and key not in (*groups, *MAPPINGS) and not is_open(key):
        return f"{text}: must be one value or a list"
    if key not in groups or value in groups[key]:
        return None
    close = did_you_mean(str(value), groups[key])
    hint = _suggest_folder(str(value)) if key == "data" else ""
    return f"{key}={format_value(value)}: not found{close}. Choose one of {', '.join(groups[key])}{hint}"


def _suggest_folder(text: str) -> str:
    """Return the overrides for a folder, of a run or of images, that stands where an override should."""
    if not os.path.isdir(text):
        return ""
    is_run = os.path.exists(os.path.join(text, "config.yaml"))
    overrides = [("run", text)] if is_run else [("data", "image_folder"), ("data.root", text)]
    return f". For this folder: {' '.join(shlex.quote(format_override(key, value)) for key, value in overrides)}"


def read_override(key: str, texts: list[str]) -> object:
    """Return the last value that the overrides give a key.

    It is None without one, or if it cannot be parsed.
    """
    texts = [text for text in texts if text.partition("=")[0] == key]
    with suppress(HydraException):
        value = OverridesParser.create().parse_override(texts[-1]).value() if texts else None
        is_text = isinstance(value, str)  # in which an escaped ${ is none of OmegaConf's
        return re.sub(r"(\\*)\$\{", lambda m: m[1][: len(m[1]) // 2] + "${", value) if is_text else value
    return None


def format_override(key: str, value: object) -> str:
    """Return `key=value` such that Hydra parses the same value again."""
    if not isinstance(value, str | Path):
        return f"{key}={_format_items(value)}"
    plain = re.fullmatch(r"[\w./-]+", str(value), re.ASCII) and read_override(key, [f"{key}={value}"]) == str(value)
    return f"{key}={value}" if plain else f"{key}={quote(escape_interpolations(str(value)))}"


def _format_items(value: object) -> str:
    """Return a value as it is written in an override, each str in quotes: Hydra does not read JSON.

    Its mappings have keys without quotes, of ASCII letters, digits and a few signs.
    """
    if isinstance(value, list):
        return f"[{', '.join(map(_format_items, value))}]"
    if isinstance(value, dict):
        keys = (re.sub(r"([\\()\[\]{}:=,\s])", r"\\\1", str(key)) for key in value)
        items = map("{}: {}".format, keys, map(_format_items, value.values()))
        return f"{{{', '.join(items)}}}"
    if isinstance(value, float):
        return str(value)  # inf, where JSON has Infinity
    return quote(escape_interpolations(value)) if isinstance(value, str) else format_value(value)


def format_command(verb: str, *overrides: str) -> str:
    """Return the command line of a follow-up command, with the --config-dir of this process."""
    return shlex.join(["python", "-m", f"diffusion_lit.{verb}", *CONFIG_DIR, *overrides])


def split_commands(text: str) -> list[str]:
    """Return the command lines of command.txt, in whose quotes a line may break."""
    return [line for line in COMMAND_START.split(text.strip("\n")) if line]


def did_you_mean(name: str, known: list[str]) -> str:
    """Return " (did you mean ...?)" with the known names like this one, or an empty text.

    Names are alike as a whole or in their last part: lr is like optimizer.lr.
    """
    group, _, last = name.rpartition(".")

    def likeness(other: str) -> float:
        other_group, _, other_last = other.rpartition(".")
        is_part = len(last) > 2 and last in other_last and last != other_last
        of_all = SequenceMatcher(None, name, other).ratio() if group != other_group else 0.0
        return max(SequenceMatcher(None, last, other_last).ratio(), 0.9 * is_part, of_all)

    close = [other for other in sorted(known, key=likeness, reverse=True)[:3] if likeness(other) > 0.7]
    return f" (did you mean {' or '.join(close)}?)" if close else ""
