"""Labels in the columns of tables: which are missing, what the classes are called, what looks like a mistake."""

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

from diffusion_lit.data.sources.data_source import DataSource
from diffusion_lit.system.console import join_names
from diffusion_lit.system.errors import DataError
from diffusion_lit.system.files import normalize_name

LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target", "cls")  # usual names; the first is used
MISSING = {"", "nan", "<na>", "null", "n/a", "#n/a"}  # as text, in any case


def find_missing_labels(values: Sequence) -> list[int]:
    """Return the rows without a label: empty, none or NaN."""
    return [k for k, value in enumerate(values) if is_missing(value)]


def is_missing(value: object) -> bool:
    """Return whether a label is empty, none or NaN."""
    return value is None or value != value or (isinstance(value, str) and value.strip().lower() in MISSING)


def name_classes(values: Sequence, where: str) -> list[str]:
    """Return the class name of each label: text in NFC and in one line, and whole numbers without ".0".

    Raises:
        DataError: if they are lists, images or anything else that is no class.
    """
    other = next((value for value in values if not isinstance(value, str | int | float)), None)
    if other is not None:
        raise DataError(f"{where} holds values of type {type(other).__name__}, not classes. Use another column.")
    names = [normalize_name(str(value).strip()) for value in values]
    if all(re.fullmatch(r"[+-]?\d+(\.0*)?", name) for name in set(names)):  # as pandas writes integers with gaps
        return [name.partition(".")[0] for name in names]
    return names


def sort_classes(names: Collection[str]) -> list[str]:
    """Return class names in order: as numbers if all of them are integers."""
    if all(re.fullmatch(r"[+-]?\d+", name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def describe_similar_classes(names: Sequence[str]) -> list[str]:
    """Return a note if names differ only in case or white space."""
    groups = defaultdict(list)
    for name in names:
        groups[" ".join(name.casefold().split())].append(name)
    pairs = [" and ".join(map(repr, group)) for group in groups.values() if len(group) > 1]
    return [f"classes that differ only in case or spaces: {join_names(pairs, 3)}"] if pairs else []


def collect_notes(source: DataSource) -> list[str]:
    """Return the notes of a source, and one on classes that differ only in case or spaces."""
    return [*getattr(source, "notes", ()), *describe_similar_classes(source.class_names)]


def describe_unused_columns(
    columns: Mapping[str, Sequence], is_unlabeled: bool, key: str = "data.label_column"
) -> list[str]:
    """Return a note on columns that could be labels.

    Args:
        columns: the values of all columns that are not used, by name.
        is_unlabeled: whether no column is used as labels. If one is, only columns of a usual
            name are reported.
        key: that chooses the labels.
    """
    counts = {name: len({str(value) for value in values}) for name, values in columns.items() if name}
    if not is_unlabeled:
        counts = {name: n for name, n in counts.items() if name.strip().lower() in LABEL_COLUMNS}
    counts = {name: n for name, n in counts.items() if 2 <= n <= max(2, len(columns[name]) / 2)}
    candidates = sorted(counts, key=lambda name: _are_numbers(columns[name]))
    if not candidates:
        return []
    listed = join_names([f"{name} ({counts[name]:,} values)" for name in candidates], 5)
    fault = "no labels are used. " * is_unlabeled + f"Not used: {listed}"
    return [f"{fault}. {key}={candidates[0]} trains with its values as classes"]


def _are_numbers(values: Sequence) -> bool:
    return all(isinstance(value, int | float) or re.fullmatch(r"[-+.\de]+", str(value)) for value in values)
