"""The exclude list that an audit proposes: broken images, equal ones, and equal ones of different classes."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffusion_lit.config.overrides import format_override
from diffusion_lit.data.sources.data_source import DataSource, Split
from diffusion_lit.data.sources.selection import format_entry
from diffusion_lit.inspection.image_facts import ImageFacts, find_duplicates
from diffusion_lit.runs import output
from diffusion_lit.system.files import write_text_atomically

log = logging.getLogger(__name__)
HEADER = """\
# Images to leave out with data.exclude=<this file>, one a line. To keep an image, remove its line.
# The next audit with the same out= replaces this file: copy it before you change it.
"""
BROKEN, CONTRADICTORY, EQUAL = "broken", "equal images of different classes", "equal to another image, which stays"


def find_excludable(facts: Sequence[ImageFacts], labels: np.ndarray, splits: np.ndarray) -> dict[str, list[int]]:
    """Return the numbers of the images that training does better without, by reason.

    Of equal images the first validation image stays, or else the first one; none stays where
    they have different classes.

    Args:
        facts: of all images.
        labels: of the images, (N,).
        splits: "train" or "val" for each image, (N,).
    """
    found = {BROKEN: [k for k, fact in enumerate(facts) if fact.error is not None], CONTRADICTORY: [], EQUAL: []}
    for group in find_duplicates([fact.digest for fact in facts]):
        if is_contradictory(group, labels):
            found[CONTRADICTORY] += group
        else:
            kept = next((k for k in group if splits[k] == "val"), group[0])
            found[EQUAL] += [k for k in group if k != kept]
    return {reason: numbers for reason, numbers in found.items() if numbers}


def is_contradictory(group: Sequence[int], labels: np.ndarray) -> bool:
    """Return whether the images of a group have different classes."""
    return len(set(labels[group].tolist())) > 1


def write_exclude_list(
    path: Path, excludable: dict[str, list[int]], splits: dict[str, Split], source: DataSource
) -> None:
    """Write the list and log what is in it, unless it is empty.

    Args:
        path: of the list.
        excludable: see `find_excludable`; the images of all splits are numbered in order.
        splits: of the source, without images that are left out already.
        source: the data source. What it leaves out already stays in the list.
    """
    places = [(name, row) for name, split in splits.items() for row in range(len(split.labels))]
    sections = {"left out before": getattr(source, "exclude_lines", [])}
    for reason, numbers in excludable.items():
        sections[reason] = [format_entry(source, splits[places[k][0]], *places[k]) for k in numbers]
    texts = ["\n".join([f"\n# {reason}", *lines, ""]) for reason, lines in sections.items() if lines]
    if not texts:
        return
    write_text_atomically(path, HEADER + "".join(texts))
    counts = ", ".join(f"{len(lines):,} {reason}" for reason, lines in sections.items() if lines)
    path = output.final_folder(path.parent) / path.name
    override = format_override("data.exclude", os.fspath(path))
    log.info("%-11s%s", "exclude", f"{counts}: listed in {path}. Add {override} to leave them out")
