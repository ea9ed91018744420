"""Merge the stored sampler of a run with the command line, and check a request against the run, without torch.

Shared by sample, evaluate, export and app. The keys are those of
`conf/sample.yaml`.
"""

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from hydra.core.override_parser.types import Sweep
from omegaconf import DictConfig, OmegaConf

from diffusion_lit.config.compose import sampler_faults
from diffusion_lit.config.constraints import find_conflicts
from diffusion_lit.config.groups import list_options, read_option
from diffusion_lit.config.overrides import format_override, read_override
from diffusion_lit.config.targets import locate
from diffusion_lit.config.value_types import format_value
from diffusion_lit.imaging.sizes import height_width
from diffusion_lit.runs import checkpoints, diffusers_format, run_dir, stored_config
from diffusion_lit.runs.resume import flatten_config
from diffusion_lit.runs.stored_config import GUIDANCE_KEYS
from diffusion_lit.sampling.labels import Label, make_blend, parse_class, row_names
from diffusion_lit.system.errors import ConfigError, raise_faults
from diffusion_lit.system.imports import import_torch

SMALL = 2**30  # bytes of images that every machine has room for
NO_GUIDE = {"guide": None, "guide_checkpoint": "last"}  # for a command without these keys
TRAINING_ONLY = ("loss", "timestep_distribution")  # keys of `diffusion` that do not matter after training


def insert_stored_sampler(overrides: list[str], config_dir: str | None) -> list[str]:
    """Return the overrides, preceded by those of the run's stored sampler unless they choose another one.

    An id on the hub is downloaded and replaced by its folder, a folder of runs by
    its newest run.

    Raises:
        UserError: exit 2 for a sweep over `run`, or two keys that exclude each
            other; exit 4 if there is no run.
    """
    run = read_override("run", overrides)
    if isinstance(run, Sweep):
        override = next(override for override in overrides if override.startswith("run="))
        raise ConfigError(f"{override}: one run at a time, since its sampler is taken from it")
    for pair in (("num_images", "images_per_class"), ("seed", "seeds"), ("seed_mix", "seeds")):
        if set(pair) <= {override.partition("=")[0] for override in overrides}:
            raise ConfigError(f"{' and '.join(pair)} exclude each other: leave one out")
    if not isinstance(run, str) or not run:
        return overrides
    overrides = diffusers_format.resolve_run(overrides)
    folder = Path(read_override("run", overrides))
    checkpoint = str(read_override("checkpoint", overrides) or "last")
    settings = dict(stored_config.read_sampling_config(run_dir.require_run_dir(folder), checkpoint)["sampler"])
    name = settings.pop("name", None)
    if read_override("sampler", overrides) not in (None, name):
        return overrides
    settings.pop("_target_", None)
    stored = [format_override(f"sampler.{key}", value) for key, value in settings.items()]
    return [f"sampler={name}", *stored, *[x for x in overrides if not x.startswith("sampler=")]]


def read_requested_config(config: DictConfig) -> dict:
    """Return the stored configuration of the run that a command names.

    Raises:
        UserError: exit 2 without `run`; exit 4 if it is not a run or has no such
            checkpoint.
    """
    if config.run is None:
        raise ConfigError("run=null: needs a run folder")
    run_config = stored_config.read_sampling_config(run_dir.require_run_dir(config.run), str(config.checkpoint))
    run = Path(config.run).expanduser()
    checkpoints.select_checkpoint(run, str(config.checkpoint), lambda message: None, config.weights)
    return run_config


def check_sampling(config: DictConfig) -> None:
    """Raise UserError (exit 2) if the run cannot be sampled as requested."""
    run_config = read_requested_config(config)
    names, has_prompts = row_names(run_config), bool(run_config.get("text_encoder"))
    labels = parse_requests(config, run_config)
    check_space(config, run_config["data"], len(labels))
    import_torch()
    network = locate(run_config["model"].get("_target_"))
    is_blend = config.context is not None or (config.interpolate and not has_prompts)
    if is_blend and not getattr(network, "supports_blends", False):
        key = "interpolate" if config.interpolate else "context"
        fault = f"{network.__name__}, the network of this run, takes one class at a time"
        hint = "Blends need model=unet, dit, simple_unet or context_unet"
        raise ConfigError(f"{key}: {fault}. {hint}")
    for key in ("images_per_class", "per_class", "interpolate"):
        if config[key] and not names:
            raise ConfigError(f"{key}={format_value(config[key])}: this run has no classes")
    if config.interpolate and len(labels) < 2:
        raise ConfigError("interpolate=true: needs two or more classes, blends or prompts")
    faults = find_sampling_faults(config, run_config)
    if config.init is not None and not config.sampler.get("starts_anywhere"):
        able = [name for name in list_options("sampler") if read_option("sampler", name).get("starts_anywhere")]
        fault = f"sampler={config.sampler.name} cannot start from a partly noised image"
        faults.append(f"init: {fault}. Choose one of: {', '.join(able)}")
    faults += find_format_faults(config, run_config["data"])
    raise_faults("the run cannot be sampled with these settings:", faults)
    check_palette(config, run_config)
    read_originals(config, run_config)


def check_palette(config: DictConfig, run_config: dict) -> None:
    """Raise UserError (exit 2) for a `palette` that has no colors for the images of a run."""
    if config.palette is not None:
        palette = OmegaConf.to_container(config)["palette"]
        from diffusion_lit.imaging.palettes import read_palette  # imports numpy

        read_palette(palette, Path(config.run).expanduser(), run_config["data"]["channels"])


def find_format_faults(config: DictConfig, data: dict) -> list[str]:
    """Return why the images of a run cannot be written as 16-bit PNG files, at most one line."""
    fault, values = None, data.get("value_range")
    if data["channels"] != 1:
        fault = f"Pillow writes 16 bits of gray only, and images of this run have {data['channels']} channels"
    elif not values:
        fault = "the training images of this run have 8 bits"
    elif values[0] < 0 or not 255 < values[1] <= 65535:
        fault = f"values of this run are from {values[0]:g} to {values[1]:g}, not integers from 0 to 65535"
    return [f"format=png16: {fault}. Use format=npy_float"] if fault and config.format == "png16" else []


def check_space(config: DictConfig, data: dict, num_labels: int) -> None:
    """Raise UserError (exit 2) for more images than memory holds, or with `shards` the disk of `out`."""
    key = "images_per_class" if config.images_per_class else "num_images"
    count = config[key] * (num_labels if config.images_per_class else 1)
    size = count * data["channels"] * math.prod(height_width(data["image_size"]))
    size *= 1 if config.shards else 4  # uint8 files, or float32
    if size < SMALL:
        return
    if config.shards:
        folder = Path(config.out or ".").expanduser().absolute()
        free, where = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.is_dir())).free, "disk"
    else:
        from diffusion_lit.system.memory import free_bytes  # imports torch

        try:
            free, where = free_bytes(), "memory"
        except OSError:  # another system than Linux
            return
    if size > free:
        space = f"{size / 2**30:,.1f} GiB, and {free / 2**30:,.1f} GiB of {where} are free"
        hint = "Generate fewer" + ("" if config.shards else ", or write them to the disk with shards= and out=")
        raise ConfigError(f"{key}={config[key]}: the images take {space}. {hint}")


def read_originals(config: DictConfig, run_config: dict):
    """Return the `Originals` to edit, decoded as the training images were; None without `init`."""
    if config.init is None:
        return None
    from diffusion_lit.data.decoding import decoding_from_config
    from diffusion_lit.data.originals import load_originals

    return load_originals(config.init, config.mask, decoding_from_config(run_config["data"]))


def parse_requests(config: DictConfig, run_config: dict) -> list[Label]:
    """Return the prompts to sample, or the labels for a run without prompts.

    Without `prompt` the prompts are those of the run's previews.

    Raises:
        UserError: exit 2 for an unknown class, for prompts that the run does not
            take, and for a prompt of which no training caption has a word.
    """
    prompts, negative = config.get("prompt"), config.get("negative_prompt")
    if not run_config.get("text_encoder"):
        if key := next((key for key in ("prompt", "negative_prompt") if config.get(key)), None):
            hint = "Choose classes=, or train with text_encoder=words"
            where = f"{key}={format_value(config[key])}"
            raise ConfigError(f"{where}: this run was trained without prompts. {hint}")
        return parse_labels(config, run_config["data"]["class_names"])
    for key in ("classes", "context"):
        if config.get(key) is not None:
            raise ConfigError(f"{key}: the condition of this run is a prompt. Use prompt=")
    prompts = [prompts] if isinstance(prompts, str) else list(prompts or run_config["preview_prompts"])
    from diffusion_lit.runs.build import make_text_encoder  # imports torch

    encoder = make_text_encoder(run_config)
    for key, text in name_prompts(prompts, negative):
        if encoder.is_unknown(text):
            fault = "; ".join(encoder.find_faults(text)) or "it has no words"
            raise ConfigError(f"{key}={format_value(text)}: {fault}. Use words of the training captions")
    return prompts


def name_prompts(prompts: Sequence[Label], negative: str | None) -> list[tuple[str, str]]:
    """Return the different prompts, each with its key."""
    return [*(("prompt", str(prompt)) for prompt in dict.fromkeys(prompts)), ("negative_prompt", negative or "")]


def warn_of_unknown_words(
    prompts: Sequence[Label], negative: str | None, run_config: dict, warn: Callable[[str], None]
) -> None:
    """Warn of the words that no training caption or few of them have, for each prompt."""
    from diffusion_lit.runs.build import make_text_encoder  # imports torch

    encoder = make_text_encoder(run_config)
    for key, text in name_prompts(prompts, negative) if encoder else ():
        if faults := encoder.find_faults(text):
            warn(f"{key}={format_value(text)}: {'; '.join(faults)}")


def parse_labels(config: DictConfig, names: list[str]) -> list[Label]:
    """Return the labels of `classes` or the blends of `context`; without either all classes.

    Raises:
        UserError: exit 2 for an unknown class.
    """
    key, parse = ("classes", parse_class) if config.context is None else ("context", make_blend)
    if config[key] is None:
        return list(range(len(names)))
    values = OmegaConf.to_container(config[key]) if OmegaConf.is_config(config[key]) else config[key]
    where = f"{key}={format_value(values)}"
    if not names:
        raise ConfigError(f"{where}: this run has no classes")
    try:
        return [parse(value, names) for value in (values if isinstance(values, list) else [values])]
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None


def find_sampling_faults(config: DictConfig, run_config: dict) -> list[str]:
    """Return why a run cannot be sampled with the requested sampler, guidance and weights, a line for each reason.

    Raises:
        UserError: exit 4 if `guide` is not a run or has no such checkpoint.
    """
    config, faults = NO_GUIDE | OmegaConf.to_container(config), []
    values = flatten_config({"diffusion": run_config["diffusion"], "sampler": config["sampler"]})
    values |= {"learned_steps": run_config["sampler"]["steps"]} if run_config.get("distill") else {}
    requested = {key: config[key] for key in GUIDANCE_KEYS if config[key] is not None}
    guidance = {"guidance_scale": run_config["guidance_scale"], "guide": config["guide"]} | requested
    if config["guide"]:
        values |= guidance
        faults += find_guide_faults(config, run_config)
    elif run_config["data"]["class_names"] or run_config.get("text_encoder"):
        values |= guidance | {"label_dropout": run_config["label_dropout"]}
    elif guidance["guidance_scale"] != 1:
        reason = "classifier-free guidance needs classes, which the run does not have. Add guide=<run> for autoguidance"
        faults += [f"{key}={format_value(value)}: {reason}" for key, value in requested.items()]
    if config.get("negative_prompt") and (config["guide"] or guidance["guidance_scale"] == 1):
        cause = "guide=" if config["guide"] else "guidance_scale=1"
        faults.append(f"negative_prompt: has no effect with {cause}. Set guidance_scale=3, without guide")
    if config["guide_checkpoint"] != "last" and not config["guide"]:
        faults.append(f"guide_checkpoint={config['guide_checkpoint']}: needs guide=<run>")
    if config["ema_length"] and not run_config.get("ema_snapshot_every"):  # a published model has no such key
        reason = "the run has no EMA snapshots. Train with ema_snapshot_every=<steps>"
        faults.append(f"ema_length={config['ema_length']}: {reason}")
    if config["ema_length"] and config["weights"] != "ema":
        override = f"weights={config['weights']}"
        faults.append(f"ema_length={config['ema_length']} sets the EMA weights, {override} the raw ones: leave one out")
    sampler = config["sampler"]
    return find_conflicts(values) + faults + sampler_faults(sampler, run_config["diffusion"], sampler["name"])


def find_guide_faults(config: dict, run_config: dict) -> Iterator[str]:
    """Yield why `guide` cannot guide the run: prediction, process, image size and classes must be the same."""
    where, guide = f"guide={config['guide']}", run_dir.require_run_dir(config["guide"])
    pairs = (guide, config["guide_checkpoint"]), (Path(config["run"]).expanduser(), config["checkpoint"])
    theirs, ours = (checkpoints.select_checkpoint(run, str(which), lambda _: None).resolve() for run, which in pairs)
    guide_config = stored_config.read_model_config(guide)
    if theirs == ours and config["weights"] == "ema" and not config["ema_length"]:
        yield f"{where} is the network itself: choose an earlier guide_checkpoint or a run of a smaller network"
    for group, keys in {"data": ["image_size", "channels"], "diffusion": run_config["diffusion"]}.items():
        for key in keys:
            own = run_config[group][key]
            other = guide_config[group].get(key, own)
            if own != other and key not in TRAINING_ONLY:
                yield f"{where} has {group}.{key}={format_value(other)}, the run {format_value(own)}: must be equal"
    if guide_config["data"]["class_names"] not in ([], run_config["data"]["class_names"]):
        yield f"{where} has other classes than the run"
    network = locate(guide_config["model"].get("_target_"))
    if (config.get("context") or config.get("interpolate")) and not getattr(network, "supports_blends", False):
        yield f"{where}: its network {network.__name__} does not take blends"
