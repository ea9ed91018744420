"""Load a published model, a folder or an id on the hub in the layout of diffusers, like a run folder.

Models published by `export` have a config.yaml. For other pipelines the
configuration is derived from the files of diffusers; class names and guidance,
which these lack, get defaults.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from diffusion_lit.config.groups import read_option
from diffusion_lit.config.overrides import format_override, read_override
from diffusion_lit.config.value_types import format_value
from diffusion_lit.runs import checkpoints, pretrained
from diffusion_lit.runs.run_dir import find_newest_run, is_diffusers_folder, is_run_dir
from diffusion_lit.runs.warm_start import resolve_architecture
from diffusion_lit.system.errors import ConfigError, raise_faults

SCHEDULER_CONFIG = "scheduler/scheduler_config.json"
# the third is of the class-conditional source project: unet and scheduler alone, with class labels
PIPELINES = ("DDPMPipeline", "DDIMPipeline", "ConditionalDDPMPipeline")
SCHEDULERS = {"DDPMScheduler": "ddpm", "DDIMScheduler": "ddim"}  # class to our sampler
VALUES: dict[str, tuple] = {  # keys of a scheduler to the values with which we make the images of the pipeline
    "beta_schedule": tuple(pretrained.BETA_SCHEDULES),
    "prediction_type": pretrained.PREDICTION_TYPES,
    "timestep_spacing": ("leading", "trailing", "linspace"),
    "variance_type": ("fixed_small", "fixed_large"),
    "rescale_betas_zero_snr": (False, True),
    "clip_sample": (True, False),
    "clip_sample_range": (1.0, 1),
    "trained_betas": (None,),
    "thresholding": (False,),
    "set_alpha_to_one": (True,),
    "steps_offset": (0,),
}
OTHER_KEYS = {  # checked by their types in conf/diffusion, or without effect
    "num_train_timesteps", "beta_start", "beta_end", "dynamic_thresholding_ratio", "sample_max_value",
}  # fmt: skip
MAX_CLASSES = 100_000
HUB_FILES = ("config.yaml", "model_index.json", "unet/config.json", SCHEDULER_CONFIG)
HUB_FILES += (checkpoints.UNET_WEIGHTS, checkpoints.NETWORK_WEIGHTS)


def resolve_run(overrides: list[str], contents: str = "checkpoints/step-*.ckpt") -> list[str]:
    """Return the overrides with the folder that `run=` stands for.

    A folder of runs such as outputs/digits stands for its newest run that has a
    checkpoint, or a file of the pattern `contents`. The run is printed.
    """
    run = read_override("run", overrides)
    if not isinstance(run, str) or not run:
        return overrides
    folder = resolve_pretrained(run)
    is_model = is_run_dir(folder) or is_diffusers_folder(folder)
    if not is_model and (newest := find_newest_run(folder, contents=contents)):
        print(f"run={run}: a folder of runs, using its newest {newest}", file=sys.stderr)
        folder = newest
    if is_diffusers_folder(folder):
        print(f"run={run}: {describe_pipeline(folder)}", file=sys.stderr)
    return [format_override("run", folder) if text.startswith("run=") else text for text in overrides]


def resolve_pretrained(run: str) -> Path:
    """Return the folder of `run=`, after downloading it if it is an id on the hub.

    Raises:
        UserError: exit 4 if there is none.
    """
    local = Path(run).expanduser()
    if local.exists() or not pretrained.is_hub_id(run):
        return local
    return pretrained.download_from_hub(run, "run", HUB_FILES)


def read_diffusers_config(folder: Path) -> dict:
    """Return the configuration of a pipeline of UNet2DModel, with the keys of config.yaml.

    Raises:
        UserError: exit 2 for a pipeline, network or scheduler that is not
            supported; exit 4 for damaged files.
    """
    index, scheduler = (pretrained.read_json(folder / name) for name in ("model_index.json", SCHEDULER_CONFIG))
    faults = [*_find_pipeline_faults(index), *_find_scheduler_faults(scheduler)]
    raise_faults(f"run={folder}: this pipeline cannot be sampled:", faults)
    network = pretrained.read_unet_config(str(folder), "run")
    size, channels, num_classes = network.get("sample_size"), network.get("in_channels", 3), _count_classes(network)
    data = {"image_size": size, "channels": channels, "num_classes": num_classes}
    model = {"_target_": "diffusion_lit.networks.unet.PretrainedUNet", "path": str(folder), "take": "architecture"}
    names = {"class_names": [str(label) for label in range(num_classes)], "render": "none"}
    names |= {"resample": "bicubic", "fit": "crop", "background": [255, 255, 255], "alpha": "keep"}
    config = {
        "name": folder.resolve().name,
        "data": data | names,
        "model": model | data,
        "diffusion": _make_diffusion_settings(scheduler),
        "weighting": read_option("weighting", "uniform"),
        "sampler": _make_sampler_settings(scheduler),
        "label_dropout": 0.0, "guidance_scale": 1.0, "guidance_interval": None, "guidance_rescale": 0.0,
    }  # fmt: skip
    return resolve_architecture(config)


def describe_pipeline(folder: Path) -> str:
    """Return how a pipeline of diffusers is sampled, for a log line."""
    name = find_class_name(pretrained.read_json(folder / "model_index.json"))
    sampler = read_diffusers_config(folder)["sampler"]
    text = f"a {name}, sampled with sampler={sampler['name']}"
    if sampler["name"] == "ddim" and sampler["clip_x0"]:
        text += ". Where x0 is clipped, the noise is computed again (use_clipped_model_output=True in diffusers)"
    return text


def _count_classes(network: dict) -> int:
    count = network.get("num_class_embeds") or 0
    if not isinstance(count, int) or not 0 <= count <= MAX_CLASSES:
        raise ConfigError(f"num_class_embeds={count}: must be a number of classes, at most {MAX_CLASSES:,}")
    return count


def find_class_name(index: dict) -> str:
    """Return the class in a model_index.json; that of a pipeline file is listed after the file."""
    name = index.get("_class_name")
    return str(name[-1] if isinstance(name, list) and name else name)


def _find_pipeline_faults(index: dict) -> Iterator[str]:
    """Yield what a pipeline does beside denoising with a network and a scheduler."""
    name = find_class_name(index)
    if not name.isidentifier() or name == "None":
        yield f"model_index.json: _class_name={name} is not a class"
    elif name not in PIPELINES:
        supported = f"{' and '.join(PIPELINES)} are"
        yield (
            f"model_index.json: {name} is not supported, {supported}. If its images come from the unet and the "
            f"scheduler alone, write {PIPELINES[0]} there"
        )
    for part, value in index.items():
        is_part = isinstance(value, list) and len(value) == 2 and part[:1] != "_" and value != [None, None]
        if is_part and part not in ("unet", "scheduler"):
            yield f"model_index.json: its {part} ({value[1]}) is not supported: images must come from the unet alone"


def _find_scheduler_faults(scheduler: dict) -> Iterator[str]:
    """Yield the settings of a scheduler with which the pipeline makes other images than we do."""
    name = scheduler.get("_class_name")
    if name not in SCHEDULERS:
        supported = f"{' and '.join(SCHEDULERS)} are"
        yield f"{SCHEDULER_CONFIG}: _class_name={name} is not supported, {supported}. Its noise levels are unknown"
        return
    for key, value in scheduler.items():
        if key in VALUES and not any(value == each and type(value) is type(each) for each in VALUES[key]):
            known = ", ".join(map(format_value, VALUES[key]))
            yield f"{SCHEDULER_CONFIG}: {key}={format_value(value)[:80]} is not supported, only {known}"
        elif key not in VALUES and key not in OTHER_KEYS and not key.startswith("_"):
            yield f"{SCHEDULER_CONFIG}: {key} is an unknown key. Remove it if it does not change the images"


def _make_diffusion_settings(scheduler: dict) -> dict:
    return {
        "num_train_timesteps": scheduler.get("num_train_timesteps", 1000),
        "beta_schedule": pretrained.BETA_SCHEDULES[scheduler.get("beta_schedule", "linear")],
        "beta_start": scheduler.get("beta_start", 0.0001),
        "beta_end": scheduler.get("beta_end", 0.02),
        "zero_terminal_snr": scheduler.get("rescale_betas_zero_snr", False),
        "prediction_type": scheduler.get("prediction_type", "epsilon"),
        "loss": "mse",
    }


def _make_sampler_settings(scheduler: dict) -> dict:
    """Return DDPM or DDIM with the settings of the pipeline's scheduler."""
    name = SCHEDULERS[scheduler["_class_name"]]
    settings = {"timestep_spacing": scheduler.get("timestep_spacing", "leading")}
    settings |= {"clip_x0": scheduler.get("clip_sample", True)}
    option, timesteps = read_option("sampler", name), scheduler.get("num_train_timesteps", 1000)
    if name == "ddpm":
        settings["variance_type"] = scheduler.get("variance_type", "fixed_small")
    elif isinstance(timesteps, int):
        settings["steps"] = min(option["steps"], timesteps)
    return option | settings
