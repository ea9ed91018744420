"""The command line of `sample` that generates the images of the app again."""

import re
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from diffusion_lit.config.groups import CONF, list_options, read_option
from diffusion_lit.config.overrides import format_command, format_override
from diffusion_lit.runs.load import TrainedModel
from diffusion_lit.runs.stored_config import read_sampling_config
from diffusion_lit.web.session import ImageSession, Request

SHARED = ("weights", "ema_length", "palette", "device")  # keys of the app that `sample` has too
GUIDANCE_DETAILS = ("guidance_interval", "guidance_rescale")  # of no effect at guidance_scale=1
EXPLICIT = ("steps", "batch_size")  # keys of a sampler that the command always has


class SampleCommand:
    """Formats the command of a request.

    Args:
        session: serves the requests.
        config: of `conf/app.yaml`.
    """

    def __init__(self, session: ImageSession, config: DictConfig):
        self.session, self.config = session, OmegaConf.to_container(config)
        self.model_overrides = list_model_overrides(self.config, session.model)
        run, checkpoint = Path(config.run).expanduser(), str(config.checkpoint)
        self.stored_sampler = read_sampling_config(run, checkpoint)["sampler"]

    def format(self, request: Request) -> str:
        """Return the command line for a request that the session has served."""
        session = self.session
        names = session.model.class_names
        overrides = [*self.model_overrides]
        if session.prompts:  # a text may not be empty, and the null prompt has no words
            overrides.append(format_override("prompt", request.label or " "))
        elif names:
            overrides += list_class_overrides(session.parse_labels(request), names)
        overrides += [f"num_images={request.count}", f"seed={request.seed}"]
        if request.mix:
            overrides.append(format_override("seed_mix", float(request.mix)))
        if session.has_guidance:
            overrides += self._list_guidance(float(request.guidance_scale))
        overrides += list_sampler_overrides(session.configure_sampler(request), self.stored_sampler)
        return format_command("sample", *overrides)

    def _list_guidance(self, scale: float) -> list[str]:
        overrides = [format_override("guidance_scale", scale)]
        for key in GUIDANCE_DETAILS:
            value = self.config[key]
            if scale != 1 and value is not None:
                overrides.append(format_override(key, value))
        return overrides


def list_model_overrides(config: dict, model: TrainedModel) -> list[str]:
    """Return the overrides with which `sample` loads the model of the app.

    A checkpoint is named by its step, since a run that is
    still training writes newer ones.

    Args:
        config: of `conf/app.yaml`.
        model: as the app has loaded it.
    """
    file = model.checkpoint.resolve().name
    step = re.fullmatch(r"step-(\d+)\.ckpt", file)
    values = {
        "checkpoint": int(step[1]) if step else config["checkpoint"],
        "precision": model.speed["precision"],
        **{key: config[key] for key in SHARED},
    }
    defaults = OmegaConf.load(CONF / "sample.yaml")
    overrides = [format_override("run", config["run"])]
    for key, value in values.items():
        if value != defaults[key]:
            overrides.append(format_override(key, value))
    return overrides


def list_sampler_overrides(settings: dict, stored: dict) -> list[str]:
    """Return the overrides of a sampler.

    Args:
        settings: of the `sampler` group.
        stored: those of the run, which `sample` starts from if the name is the same.
    """
    name, base = settings["name"], {}
    if name == stored.get("name"):
        base = stored
    elif name in list_options("sampler"):
        base = read_option("sampler", name)
    overrides = [f"sampler={name}"]
    for key, value in settings.items():
        is_needed = key in EXPLICIT or value != base.get(key)
        if is_needed and key not in ("name", "_target_"):
            overrides.append(format_override(f"sampler.{key}", value))
    return overrides


def list_class_overrides(classes: Sequence[int], names: Sequence[str]) -> list[str]:
    """Return the override of the classes of a request; none if they are all that the model has."""
    chosen = [names[k] for k in dict.fromkeys(classes)]
    if len(chosen) == len(names):
        return []
    value = chosen[0] if len(chosen) == 1 else chosen
    return [format_override("classes", value)]
