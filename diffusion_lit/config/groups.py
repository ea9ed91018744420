"""The yaml files of one config group, read without composing."""

from omegaconf import OmegaConf

from diffusion_lit.config.compose import CONF
from diffusion_lit.system.errors import Exit, UserError


def list_options(group: str) -> list[str]:
    """Return the names of the yaml files in `conf/<group>`, sorted."""
    return sorted(file.stem for file in CONF.glob(f"{group}/*.yaml"))


def read_option(group: str, name: str) -> dict:
    """Return `conf/<group>/<name>.yaml` as plain data. Raises UserError (exit 2) if there is no such file."""
    if name not in list_options(group):
        raise UserError(Exit.CONFIG, f"{group}={name}: not found. Choose one of {', '.join(list_options(group))}")
    return OmegaConf.to_container(OmegaConf.load(CONF / group / f"{name}.yaml"))
