"""What a command may ask of a trained run that it was not trained with, by keys of `conf/sample.yaml`; no torch."""

from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from diffusion_lit.classes import locate
from diffusion_lit.conflicts import conflicts
from diffusion_lit.rules import shown
from diffusion_lit.runs import checkpoints, folder

GUIDANCE = ("guidance_scale", "guidance_interval", "guidance_rescale")
OF_TRAINING = ("loss", "timestep_sampling")  # keys of `diffusion` that a trained network does not depend on


def faults(config: DictConfig, run_config: dict) -> list[str]:
    """Why a run cannot be sampled so, a line for each reason.

    Raises:
        UserError: exit 4 if `guide` is no run or has no such checkpoint.
    """
    values = {f"diffusion.{key}": value for key, value in run_config["diffusion"].items()}
    values |= {f"sampler.{key}": value for key, value in config.sampler.items()}
    asked = {key: config[key] for key in GUIDANCE if config[key] is not None}
    asked |= {"guidance_interval": list(asked["guidance_interval"])} if "guidance_interval" in asked else {}
    scale = asked.get("guidance_scale", run_config["guidance_scale"])
    told = []
    if config.guide is not None or run_config["data"]["class_names"]:
        values |= asked | {"guidance_scale": scale}
        if config.guide is None and "guidance_scale" in asked:
            values["label_dropout"] = run_config["label_dropout"]
    elif scale != 1:
        why = "the run has no classes to guide by; guide=<run> guides by a worse network"
        told = [f"{key}={shown(value)}: {why}" for key, value in asked.items()]
    if config.guide is not None:
        told += guide_faults(config, run_config, scale)
    elif config.guide_checkpoint != "last":
        told.append(f"guide_checkpoint={config.guide_checkpoint}: of no run, add guide=<run>")
    if config.ema_length is not None:
        told += length_faults(config, run_config)
    return conflicts(values) + told


def length_faults(config: DictConfig, run_config: dict) -> Iterator[str]:
    if not run_config.get("ema_snapshot_every"):  # older runs have no such key
        yield (
            f"ema_length={config.ema_length}: the run kept nothing to make it from; averages of any length need "
            "training with ema_snapshot_every=<steps>"
        )
    if config.weights != "ema":
        yield f"ema_length={config.ema_length} is an average, weights={config.weights} is none: leave one of them out"


def guide_faults(config: DictConfig, run_config: dict, scale: float) -> Iterator[str]:
    """A guide answers the same question as the network, worse: same pictures, classes, noise and prediction."""
    run, guide = Path(config.run).expanduser(), folder.require_run(config.guide)
    used, using = (
        checkpoints.choose(path, str(which), warn=lambda message: None).resolve()
        for path, which in ((guide, config.guide_checkpoint), (run, config.checkpoint))
    )
    told, its_config = f"guide={config.guide}", folder.read_config(guide)
    if scale == 1:
        yield f"{told} does nothing at guidance_scale=1: set guidance_scale=2, say"
    if used == using and config.weights == "ema" and config.ema_length is None:
        yield f"{told} is the network itself: take an earlier guide_checkpoint or a run of a smaller network"
    for group, keys in (("data", ("image_size", "channels")), ("diffusion", run_config["diffusion"].keys())):
        for key in keys:
            own, its = run_config[group][key], its_config[group].get(key, run_config[group][key])
            if own != its and key not in OF_TRAINING:
                yield f"{told} has {group}.{key}={shown(its)}, the run {shown(own)}: both must have the same"
    if its_config["data"]["class_names"] not in ([], run_config["data"]["class_names"]):
        yield f"{told} has other classes than the run"
    if OmegaConf.select(config, "context") is not None:
        network = locate(its_config["model"].get("_target_"))
        if not getattr(network, "takes_blends", False):
            yield f"{told}: {network.__name__}, its network, takes no context"
