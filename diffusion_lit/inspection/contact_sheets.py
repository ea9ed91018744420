"""The files of an audit: audit.json, and contact sheets with a row of images for each class or group of duplicates."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from diffusion_lit.data.decoding import Decoding
from diffusion_lit.data.sources.concat import ConcatImages
from diffusion_lit.data.sources.data_source import Split
from diffusion_lit.imaging.rows import choose_rows, describe_rows
from diffusion_lit.imaging.sizes import height_width
from diffusion_lit.inspection.image_facts import ImageFacts
from diffusion_lit.runs import output
from diffusion_lit.system.console import join_names

log = logging.getLogger(__name__)
MAX_ROWS = 24
SHEET_WIDTH = 1000  # px, about
MAX_NAME = 28  # characters of a file name


def contact_sheet(
    splits: dict[str, Split],
    readable: Sequence[int],
    labels: np.ndarray,
    decoding: Decoding,
    class_names: Sequence[str],
) -> Image.Image | None:
    """Return rows of images, of each class some from its first to its last one; None without images.

    Args:
        splits: the images.
        readable: numbers of the images that can be read.
        labels: of all images.
        decoding: how to decode them.
        class_names: by label; empty: eight rows of all images.
    """
    columns, readable = _count_columns(decoding), np.array(readable, dtype=int)
    if class_names:
        names = [(k, class_names[k]) for k in choose_rows(len(class_names), MAX_ROWS)]
        members = {name: readable[labels[readable] == k] for k, name in names}
        rows = {name: own[choose_rows(len(own), columns)] for name, own in members.items()}
    else:
        chosen = readable[choose_rows(len(readable), 8 * columns)]
        rows = {k: chosen[k * columns : (k + 1) * columns] for k in range(8)}
    return _draw_sheet(splits, rows, decoding, describe_rows(len(class_names), MAX_ROWS).lstrip(", "))


def duplicate_sheet(
    splits: dict[str, Split], facts: Sequence[ImageFacts], findings: dict, decoding: Decoding
) -> Image.Image | None:
    """Return groups of duplicates and near duplicates, one a row; None if there are none."""
    number, rows = {fact.name: k for k, fact in enumerate(facts)}, {}
    kinds = ("equal", findings["duplicates"]), ("near", findings["near_duplicates"])
    for kind, groups in kinds:
        for k, group in enumerate(groups[: MAX_ROWS // 2]):
            files = join_names([_shorten(Path(name).name) for name in group], 2)
            rows[f"{kind} {k + 1}: {files}"] = [number[name] for name in group[: _count_columns(decoding)]]
    left_out = {kind: len(groups) - MAX_ROWS // 2 for kind, groups in kinds}
    more = [f"{count} more {kind} groups" for kind, count in left_out.items() if count > 0]
    return _draw_sheet(splits, rows, decoding, f"and {', '.join(more)} in audit.json" if more else "")


def _shorten(name: str) -> str:
    return name if len(name) <= MAX_NAME else f"...{name[3 - MAX_NAME :]}"


def _count_columns(decoding: Decoding) -> int:
    return min(max(SHEET_WIDTH // max(*height_width(decoding.image_size), 40), 4), 16)


def _draw_sheet(
    splits: dict[str, Split], rows: dict[str | int, Sequence[int]], decoding: Decoding, title: str
) -> Image.Image | None:
    """Draw the images with these numbers. Names of rows are written beside them, numbers of rows are not."""
    import torch

    from diffusion_lit.imaging.grids import add_checkerboard
    from diffusion_lit.sampling.previews import draw_row_grid

    rows = {name: row for name, row in rows.items() if len(row)}
    if not rows:
        return None
    sources = ConcatImages([split.images for split in splits.values()])
    images = torch.from_numpy(np.stack([decoding(sources[k]) for row in rows.values() for k in row]))
    in_rows = [name for name, row in rows.items() for _ in row]
    names = [name for name in rows if isinstance(name, str)]
    return add_checkerboard(draw_row_grid(images, in_rows, names, title))


def write_audit(out: Path, findings: dict, facts: list, splits: dict, labels, decoding, class_names: list[str]) -> None:
    """Write audit.json, and contact sheets of images as the network would see them."""
    (out / "audit.json").write_text(json.dumps(findings, indent=1) + "\n", encoding="utf-8")
    good = [k for k, fact in enumerate(facts) if fact.error is None]
    sheets = {
        "images.png": contact_sheet(splits, good, labels, decoding, class_names),
        "duplicates.png": duplicate_sheet(splits, facts, findings, decoding),
    }
    for name, sheet in sheets.items():
        if sheet:
            sheet.save(out / name)
    final = output.final_folder(out)
    log.info("%-11s%s", "written", ", ".join(str(final / name) for name, sheet in sheets.items() if sheet))
    log.info("%-11s%s", "", final / "audit.json")
