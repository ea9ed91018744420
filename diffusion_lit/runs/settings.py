"""What a command may ask of a trained run that it was not trained with, by keys of `conf/sample.yaml`; no torch."""

from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from diffusion_lit.config.constraints import conflicts
from diffusion_lit.config.schema import shown
from diffusion_lit.config.targets import locate
from diffusion_lit.runs import checkpoints, run_dir, stored_config

GUIDANCE = ("guidance_scale", "guidance_interval", "guidance_rescale")
OF_TRAINING = ("loss", "timestep_sampling")  # keys of `diffusion` that a trained network does not depend on


def faults(config: DictConfig, run_config: dict) -> list[str]:
    """Why a run cannot be sampled so, a line for each reason.

    Raises:
        UserError: exit 4 if `guide` is no run or has no such checkpoint.
    """
    config, told = OmegaConf.to_container(config), []
    values = {f"diffusion.{key}": value for key, value in run_config["diffusion"].items()}
    values |= {f"sampler.{key}": value for key, value in config["sampler"].items()}
    asked = {key: config[key] for key in GUIDANCE if config[key] is not None}
    guidance = {"guidance_scale": run_config["guidance_scale"], "guide": config["guide"]} | asked
    if config["guide"]:
        values |= guidance
        told += guide_faults(config, run_config)
    elif run_config["data"]["class_names"]:
        values |= guidance | {"label_dropout": run_config["label_dropout"]}
    elif guidance["guidance_scale"] != 1:
        why = "the run has no classes to guide by; guide=<run> guides by a worse network"
        told += [f"{key}={shown(value)}: {why}" for key, value in asked.items()]
    if config["guide_checkpoint"] != "last" and not config["guide"]:
        told.append(f"guide_checkpoint={config['guide_checkpoint']}: of no run, add guide=<run>")
    if config["ema_length"] and not run_config.get("ema_snapshot_every"):  # older runs have no such key
        why = "the run kept nothing to make it from; it takes training with ema_snapshot_every=<steps>"
        told.append(f"ema_length={config['ema_length']}: {why}")
    if config["ema_length"] and config["weights"] != "ema":
        told.append(f"ema_length={config['ema_length']} is an average, weights={config['weights']} none: leave one out")
    return conflicts(values) + told


def guide_faults(config: dict, run_config: dict) -> Iterator[str]:
    """A guide answers the same question as the network, worse: same pictures, classes, noise and prediction."""
    told, guide = f"guide={config['guide']}", run_dir.require_run(config["guide"])
    places = (guide, config["guide_checkpoint"]), (Path(config["run"]).expanduser(), config["checkpoint"])
    used, using = (checkpoints.choose(run, str(which), lambda message: None).resolve() for run, which in places)
    its_config = stored_config.read_config(guide)
    if used == using and config["weights"] == "ema" and not config["ema_length"]:
        yield f"{told} is the network itself: take an earlier guide_checkpoint or a run of a smaller network"
    for group, keys in {"data": ["image_size", "channels"], "diffusion": run_config["diffusion"]}.items():
        for key in keys:
            own, its = run_config[group][key], its_config[group].get(key, run_config[group][key])
            if own != its and key not in OF_TRAINING:
                yield f"{told} has {group}.{key}={shown(its)}, the run {shown(own)}: both must have the same"
    if its_config["data"]["class_names"] not in ([], run_config["data"]["class_names"]):
        yield f"{told} has other classes than the run"
    network = locate(its_config["model"].get("_target_"))
    if (config.get("context") or config.get("interpolate")) and not getattr(network, "takes_blends", False):
        yield f"{told}: {network.__name__}, its network, takes no blends"
