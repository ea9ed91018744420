"""`python -m diffusion_lit.audit data=...`: inspect a data set before training on it."""

import copy
import logging
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from diffusion_lit.cli.launch import launch
from diffusion_lit.config.expand import take_data_of_experiment
from diffusion_lit.config.network_size import find_divisor
from diffusion_lit.config.overrides import format_command, format_override
from diffusion_lit.runs import output
from diffusion_lit.runs.warm_start import resolve_training_config
from diffusion_lit.system.errors import ConfigError, Exit
from diffusion_lit.system.imports import import_torch

log = logging.getLogger("diffusion_lit.audit")
FILES = ("images.png", "duplicates.png", "exclude.txt")  # not in every audit
AUDIT_KEYS = ("out", "near", "largest")  # not keys of train


def main() -> None:
    """Run the command."""
    typed = []

    def prepare(overrides: list[str], config_dir: str | None) -> list[str]:
        typed[:] = overrides
        return take_data_of_experiment(overrides, config_dir, AUDIT_KEYS)

    launch("audit", partial(audit, typed=typed), prepare, check_audit)


def check_audit(config: DictConfig) -> None:
    """Raise UserError for streamed or missing data, or a network that does not take this image size."""
    if config.data.get("streaming"):
        override = format_override("data.streaming", config.data.streaming)
        raise ConfigError(f"{override}: an audit reads images more than once. Set it to false")
    output.require_available(Path(config.out).expanduser(), "audit.json", FILES)
    resolved, source = resolve_training_config(config)
    source.splits()
    import_torch()  # after all other checks
    from diffusion_lit.runs.build import check_network

    check_network(resolved)


def audit(config: DictConfig, typed: Sequence[str]) -> None:
    """Inspect every image, log and write the findings, and propose overrides that are added to the typed ones."""
    import numpy as np
    from hydra.core.hydra_config import HydraConfig

    from diffusion_lit.data.decoding import decoding_from_config
    from diffusion_lit.data.sources.table_labels import collect_notes
    from diffusion_lit.data.value_ranges import resolve_value_range
    from diffusion_lit.inspection.contact_sheets import write_audit
    from diffusion_lit.inspection.exclude_list import find_excludable, write_exclude_list
    from diffusion_lit.inspection.findings import format_findings, propose_overrides, summarize_facts
    from diffusion_lit.inspection.image_facts import assign_splits, inspect_images, summarize_captions
    from diffusion_lit.system.console import progress_bar

    overrides, composed = list(HydraConfig.get().overrides.task), copy.deepcopy(config)
    config, source = resolve_training_config(config)
    splits = source.splits()
    config["data"] = data = resolve_value_range(config["data"], splits)
    decoding = decoding_from_config(data)
    labels = np.concatenate([split.labels for split in splits.values()])
    has_colors = data.get("caption_colors", False)
    with progress_bar("reading") as bar:
        facts = list(bar.track(inspect_images(splits, decoding, has_colors), total=len(labels), description=""))
    split_names = assign_splits(splits, facts, data["val_fraction"])
    findings = summarize_facts(facts, labels, split_names, data, config["near"])

    given, model = {override.partition("=")[0] for override in overrides}, config["model"]
    proposed, reason = propose_overrides(findings, data, given, find_divisor(model), config["largest"])
    overrides = [override for override in typed if override.partition("=")[0] not in AUDIT_KEYS]
    overrides += [format_override(*item) for item in proposed.items()]
    findings |= {"proposed": proposed, "command": format_command("train", *overrides)}
    findings["training_would_fail"] = bool(findings["broken"])
    findings |= summarize_captions(splits, facts, data["class_names"], has_colors)
    findings |= {"left_out": getattr(source, "left_out", {}), "notes": collect_notes(source)}
    for key, value in proposed.items():  # also levels that depend on the size
        OmegaConf.update(composed, key, value)
    model |= OmegaConf.to_container(composed.model, resolve=True)
    log.info("\n".join(format_findings(findings, data, model, reason)))
    with output.fill_folder(Path(config["out"]), "audit.json", replaces=FILES) as out:
        write_audit(out, findings, facts, splits, labels, decoding, data["class_names"])
        write_exclude_list(out / "exclude.txt", find_excludable(facts, labels, split_names), splits, source)
    if findings["training_would_fail"]:
        log.info("training would fail: repair or leave out the broken images, then run\n%s", findings["command"])
        sys.exit(int(Exit.DATA))
    log.info(findings["command"])


if __name__ == "__main__":
    main()
