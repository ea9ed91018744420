"""The files that an audit writes."""

import json
import logging
from pathlib import Path

from diffusion_lit.inspection.contact_sheets import contact_sheet, duplicate_sheet
from diffusion_lit.runs import output

log = logging.getLogger(__name__)


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
