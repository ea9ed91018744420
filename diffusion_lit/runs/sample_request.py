"""What a command may change of how a trained run samples, by keys of `conf/sample.yaml`, checked without torch."""

from collections.abc import Iterator
from pathlib import Path

from hydra.core.override_parser.types import Sweep
from omegaconf import DictConfig, OmegaConf

from diffusion_lit.config.compose import sampler_faults
from diffusion_lit.config.constraints import find_conflicts
from diffusion_lit.config.groups import list_options, read_option
from diffusion_lit.config.overrides import format_override, read_override
from diffusion_lit.config.schema import format_value
from diffusion_lit.config.targets import locate
from diffusion_lit.runs import checkpoints, diffusers_format, run_dir, stored_config
from diffusion_lit.runs.stored_config import GUIDANCE_KEYS
from diffusion_lit.sampling.labels import Label, blend_of, number_of
from diffusion_lit.system.errors import Exit, UserError

NO_GUIDE = {"guide": None, "guide_checkpoint": "last"}  # for a command without these keys
TRAINING_ONLY = ("loss", "timestep_sampling")  # keys of `diffusion` that a trained network does not depend on


def insert_stored_sampler(overrides: list[str], config_dir: str | None) -> list[str]:
    """Return the overrides behind those of the run's own sampler, unless they choose another one.

    Raises:
        UserError: exit 2 for a sweep over `run`, or two keys that exclude each other; exit 4 if there is no run.
    """
    run = read_override("run", overrides)
    if isinstance(run, Sweep):
        word = next(word for word in overrides if word.startswith("run="))
        raise UserError(Exit.CONFIG, f"{word}: one run at a time, its sampler is taken from it")
    for pair in (("num_images", "images_per_class"), ("seed", "seeds")):
        if set(pair) <= {word.partition("=")[0] for word in overrides}:
            raise UserError(Exit.CONFIG, f"{' and '.join(pair)} exclude each other: leave one out")
    if not isinstance(run, str) or not run:
        return overrides
    found = diffusers_format.resolve_pretrained(run)
    if str(found) != str(Path(run).expanduser()):  # of the hub, and now on this machine
        overrides = [format_override("run", found) if word.startswith("run=") else word for word in overrides]
    settings = dict(stored_config.read_sampling_config(run_dir.require_run_dir(found))["sampler"])
    name = settings.pop("name", None)
    if read_override("sampler", overrides) not in (None, name):
        return overrides
    rest = [word for word in overrides if not word.startswith("sampler=")]
    settings.pop("_target_", None)
    return [f"sampler={name}", *[format_override(f"sampler.{key}", value) for key, value in settings.items()], *rest]


def read_requested_config(config: DictConfig) -> dict:
    """Return the configuration of the run that a command names.

    Raises:
        UserError: exit 2 without `run`; exit 4 if it is not a run or has no such checkpoint.
    """
    if config.run is None:
        raise UserError(Exit.CONFIG, "run=null: needs a run folder")
    run_config = stored_config.read_sampling_config(run_dir.require_run_dir(config.run))
    checkpoints.select_checkpoint(Path(config.run).expanduser(), str(config.checkpoint), warn=lambda message: None)
    return run_config


def check_sampling(config: DictConfig) -> None:
    """Raise UserError (exit 2) if the run cannot be sampled by the keys of `conf/sample.yaml`."""
    run_config = read_requested_config(config)
    names = run_config["data"]["class_names"]
    stops = parse_labels(config, names)
    if config.context is not None or config.interpolate:
        network = locate(run_config["model"].get("_target_"))
        if not getattr(network, "takes_blends", False):
            key = "interpolate" if config.interpolate else "context"
            raise UserError(
                Exit.CONFIG,
                f"{key}: {network.__name__}, the network of this run, takes one class at a time; "
                "model=unet, dit, simple_unet or context_unet take blends",
            )
    for key in ("images_per_class", "per_class", "interpolate"):
        if config[key] and not names:
            raise UserError(Exit.CONFIG, f"{key}={format_value(config[key])}: this run has no classes")
    if config.interpolate and len(stops) < 2:
        raise UserError(Exit.CONFIG, "interpolate=true: needs two classes or blends to go between")
    faults = sampling_faults(config, run_config)
    if config.init is not None and not config.sampler.get("starts_anywhere"):
        able = [name for name in list_options("sampler") if read_option("sampler", name).get("starts_anywhere")]
        faults.append(f"init: sampler={config.sampler.name} cannot start in the middle; {', '.join(able)} can")
    raise_faults(faults, "sampled")
    read_originals(config, run_config)


def raise_faults(faults: list[str], verb: str) -> None:
    """Raise UserError (exit 2) with all faults, if there are any."""
    if faults:
        raise UserError(Exit.CONFIG, "\n  ".join([f"this run cannot be {verb} so:", *faults]))


def read_originals(config: DictConfig, run_config: dict):
    """Return the `Originals` to edit, decoded as the run's training images were; None without `init`."""
    if config.init is None:
        return None
    from diffusion_lit.data.decoding import decoding_of
    from diffusion_lit.data.originals import read

    return read(config.init, config.mask, decoding_of(run_config["data"]))


def parse_labels(config: DictConfig, names: list[str]) -> list[Label]:
    """Return the labels of `classes`, by number or name, or the blends of `context`; all classes without either.

    Raises:
        UserError: exit 2 for an unknown class.
    """
    key, parse = ("classes", number_of) if config.context is None else ("context", blend_of)
    if config[key] is None:
        return list(range(len(names)))
    values = OmegaConf.to_container(config[key]) if OmegaConf.is_config(config[key]) else config[key]
    where = f"{key}={format_value(values)}"
    if not names:
        raise UserError(Exit.CONFIG, f"{where}: this run has no classes")
    try:
        return [parse(value, names) for value in (values if isinstance(values, list) else [values])]
    except ValueError as error:
        raise UserError(Exit.CONFIG, f"{where}: {error}") from None


def sampling_faults(config: DictConfig, run_config: dict) -> list[str]:
    """Return why a run cannot be sampled with a sampler, guidance and weights, a line for each reason.

    Raises:
        UserError: exit 4 if `guide` is not a run or has no such checkpoint.
    """
    config, faults = NO_GUIDE | OmegaConf.to_container(config), []
    values = {f"diffusion.{key}": value for key, value in run_config["diffusion"].items()}
    values |= {f"sampler.{key}": value for key, value in config["sampler"].items()}
    requested = {key: config[key] for key in GUIDANCE_KEYS if config[key] is not None}
    guidance = {"guidance_scale": run_config["guidance_scale"], "guide": config["guide"]} | requested
    if config["guide"]:
        values |= guidance
        faults += find_guide_faults(config, run_config)
    elif run_config["data"]["class_names"]:
        values |= guidance | {"label_dropout": run_config["label_dropout"]}
    elif guidance["guidance_scale"] != 1:
        why = "the run has no classes to guide by; guide=<run> guides by a weaker model"
        faults += [f"{key}={format_value(value)}: {why}" for key, value in requested.items()]
    if config["guide_checkpoint"] != "last" and not config["guide"]:
        faults.append(f"guide_checkpoint={config['guide_checkpoint']}: of no run, add guide=<run>")
    if config["ema_length"] and not run_config.get("ema_snapshot_every"):  # a published model has no such key
        why = "the run kept nothing to make it from; it takes training with ema_snapshot_every=<steps>"
        faults.append(f"ema_length={config['ema_length']}: {why}")
    if config["ema_length"] and config["weights"] != "ema":
        faults.append(
            f"ema_length={config['ema_length']} is an average, weights={config['weights']} none: leave one out"
        )
    sampler = config["sampler"]
    return find_conflicts(values) + faults + sampler_faults(sampler, run_config["diffusion"], sampler["name"])


def find_guide_faults(config: dict, run_config: dict) -> Iterator[str]:
    """Yield why `guide` cannot guide: it must predict the same from the same, with the same classes."""
    where, guide = f"guide={config['guide']}", run_dir.require_run_dir(config["guide"])
    places = (guide, config["guide_checkpoint"]), (Path(config["run"]).expanduser(), config["checkpoint"])
    used, using = (
        checkpoints.select_checkpoint(run, str(which), lambda message: None).resolve() for run, which in places
    )
    its_config = stored_config.read_model_config(guide)
    if used == using and config["weights"] == "ema" and not config["ema_length"]:
        yield f"{where} is the network itself: take an earlier guide_checkpoint or a run of a smaller network"
    for group, keys in {"data": ["image_size", "channels"], "diffusion": run_config["diffusion"]}.items():
        for key in keys:
            own, its = run_config[group][key], its_config[group].get(key, run_config[group][key])
            if own != its and key not in TRAINING_ONLY:
                values = f"{group}.{key}={format_value(its)}, the run {format_value(own)}"
                yield f"{where} has {values}: both must have the same"
    if its_config["data"]["class_names"] not in ([], run_config["data"]["class_names"]):
        yield f"{where} has other classes than the run"
    network = locate(its_config["model"].get("_target_"))
    if (config.get("context") or config.get("interpolate")) and not getattr(network, "takes_blends", False):
        yield f"{where}: {network.__name__}, its network, takes no blends"
