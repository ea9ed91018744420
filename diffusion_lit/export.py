"""`python -m diffusion_lit.export run=<folder> out=<folder>`: publish a trained run as a folder."""

import logging
from pathlib import Path

from omegaconf import DictConfig

from diffusion_lit.cli.launch import launch
from diffusion_lit.config.overrides import format_command, format_override
from diffusion_lit.runs import output, pretrained, run_dir, sample_request
from diffusion_lit.system.errors import raise_faults

log = logging.getLogger("diffusion_lit.export")


def main() -> None:
    """Run the command."""
    launch("export", export, prepare=sample_request.insert_stored_sampler, check=check_export)


def check_export(config: DictConfig) -> None:
    """Raise UserError (exit 2) if the run cannot be exported as requested."""
    faults = sample_request.find_sampling_faults(config, sample_request.read_requested_config(config))
    if config.push and not pretrained.is_hub_id(config.push):
        faults.append(f"push={config.push}: not the name of a model on the hub, such as me/digits")
    raise_faults("the run cannot be exported with these settings:", faults)


def export(config: DictConfig) -> None:
    """Write the folder atomically, and upload it if `push` names a repository."""
    from diffusion_lit.runs.load import load_requested_model
    from diffusion_lit.runs.publish import publish_model, upload_to_hub

    output.require_available(Path(config.out).expanduser(), "config.yaml")
    model = load_requested_model(config, log.warning)
    out = Path(config.out).expanduser()
    with output.fill_folder(out, "config.yaml") as building:
        publish_model(building, model, config)
    log.info("exported   %s", run_dir.display_path(out))
    log.info("more       %s", format_command("sample", format_override("run", run_dir.display_path(out))))
    if config.push:
        upload_to_hub(out, config.push, config.private)


if __name__ == "__main__":
    main()
