"""Configuration of a trained model: of a run folder, or of a folder in the layout of diffusers."""

from pathlib import Path

from omegaconf import OmegaConf

from diffusion_lit.runs.diffusers_format import read_diffusers_config
from diffusion_lit.runs.run_dir import is_diffusers_folder, read_run_config, read_yaml
from diffusion_lit.runs.stored_values import check_values
from diffusion_lit.runs.student import pin_sampler
from diffusion_lit.system.files import write_text_atomically

GUIDANCE_KEYS = ("guidance_scale", "guidance_interval", "guidance_rescale")


def read_model_config(folder: Path) -> dict:
    """Return config.yaml of a run, or the same keys as far as a diffusers pipeline has them.

    Raises:
        UserError: exit 4 if a file is damaged; exit 2 for values that do not fit,
            and for a network or a schedule that is not supported.
    """
    config = read_diffusers_config(folder) if is_diffusers_folder(folder) else read_run_config(folder)
    check_values(config, folder)
    return config


def read_sampling_config(run: Path, checkpoint: str = "last") -> dict:
    """Return the configuration with sampler and guidance of sampling.yaml, if there is one.

    The steps of a student are those that it has learned at a checkpoint: "last", "best"
    or a step.

    Raises:
        UserError: exit 4 if one of the two files is damaged.
    """
    config, path = read_model_config(run), run / "sampling.yaml"
    if path.exists():
        config |= read_yaml(path)
        check_values(config, path)
    return pin_sampler(config, run, checkpoint)


def write_sampling_config(run: Path, settings: dict, reason: str) -> Path:
    """Write sampling.yaml, the settings with which the run is sampled from now on."""
    best = {key: settings[key] for key in ("sampler", *GUIDANCE_KEYS) if settings[key] is not None}
    text = f"# {reason}. Remove this file to restore the settings of config.yaml\n{OmegaConf.to_yaml(best)}"
    write_text_atomically(run / "sampling.yaml", text)
    return run / "sampling.yaml"
