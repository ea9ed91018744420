"""`python -m diffusion_lit.export run=<folder> out=<folder>`: a trained run as a folder to share."""

import logging
from pathlib import Path

from omegaconf import DictConfig

from diffusion_lit.cli.launch import launch
from diffusion_lit.config.overrides import format_command, format_override
from diffusion_lit.runs import pretrained, run_dir
from diffusion_lit.runs.settings import find_faults, insert_stored_sampler, raise_if, read_requested_config

log = logging.getLogger("diffusion_lit.export")


def main() -> None:
    launch("export", export, prepare=insert_stored_sampler, check=check)


def check(config: DictConfig) -> None:
    """Raise UserError (exit 2) if the run cannot be exported with these keys."""
    faults = find_faults(config, read_requested_config(config))
    if config.push and not pretrained.is_hub_id(config.push):
        faults.append(f"push={config.push}: is no name of a model on the hub, such as me/digits")
    raise_if(faults, "exported")


def export(config: DictConfig) -> None:
    """Write the folder, complete or not at all, and upload it if `push` names a repository."""
    from diffusion_lit.runs.load import load_requested
    from diffusion_lit.runs.publish import publish, upload

    model = load_requested(config, log.warning)
    out = run_dir.new_output(config.out, Path(config.run).expanduser(), "generated")
    with run_dir.whole(out) as building:
        publish(building, model, config)
    log.info("exported   %s", run_dir.shown(out))
    log.info("more       %s", format_command("sample", format_override("run", run_dir.shown(out))))
    if config.push:
        upload(out, config.push, config.private)


if __name__ == "__main__":
    main()
