"""The configuration of a trained model: of a run folder, or of a folder in the layout of diffusers."""

from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from diffusion_lit.runs.diffusers_format import config_from_diffusers
from diffusion_lit.runs.run_dir import is_diffusers_folder, read_run_config
from diffusion_lit.system.errors import Exit, UserError
from diffusion_lit.system.files import write_text_atomically

GUIDANCE_KEYS = ("guidance_scale", "guidance_interval", "guidance_rescale")


def read_model_config(folder: Path) -> dict:
    """Return config.yaml of a run, or what the files of a diffusers pipeline say in its place.

    Raises:
        UserError: exit 4 if a file is damaged; exit 2 for a network or a schedule that is not supported.
    """
    return config_from_diffusers(folder) if is_diffusers_folder(folder) else read_run_config(folder)


def read_sampling_config(run: Path) -> dict:
    """config.yaml with the settings that `evaluate set_default=true` found best, sampling.yaml, in place of its own.

    Raises:
        UserError: exit 4 if one of the two is damaged.
    """
    config, path = read_model_config(run), run / "sampling.yaml"
    try:
        best = OmegaConf.to_container(OmegaConf.load(path)) if path.exists() else {}
        return {**config, **best}
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException, TypeError) as error:
        raise UserError(Exit.CHECKPOINT, f"{path} is damaged, remove it: {error}") from None


def write_sampling_config(run: Path, settings: dict, why: str) -> Path:
    """Write sampling.yaml, which `sample` and all that loads the run take from now on, and return its path."""
    best = {key: settings[key] for key in ("sampler", *GUIDANCE_KEYS) if settings[key] is not None}
    write_text_atomically(run / "sampling.yaml", f"# {why}; remove this file to go back\n{OmegaConf.to_yaml(best)}")
    return run / "sampling.yaml"
