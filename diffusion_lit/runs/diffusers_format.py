"""Load a published model, a folder or an id on the hub in the layout of diffusers, like a run folder.

Models published by `export` have a config.yaml. For other pipelines the configuration is
derived from the files of diffusers; class names and guidance, which these lack, get defaults.
"""

import sys
from pathlib import Path

from diffusion_lit.config.groups import read_option
from diffusion_lit.config.overrides import format_override, read_override
from diffusion_lit.runs import checkpoints, pretrained
from diffusion_lit.runs.run_dir import find_newest_run, is_diffusers_folder, is_run_dir
from diffusion_lit.runs.warm_start import resolve_architecture
from diffusion_lit.system.errors import Exit, UserError

HUB_FILES = ("config.yaml", "model_index.json", "unet/config.json", "scheduler/scheduler_config.json")
HUB_FILES += (checkpoints.UNET_WEIGHTS, checkpoints.NETWORK_WEIGHTS)


def resolve_run(overrides: list[str], contents: str = "checkpoints/step-*.ckpt") -> list[str]:
    """Return the overrides with the folder that `run=` stands for.

    A folder of runs such as outputs/digits stands for its newest run that has a checkpoint,
    or a file of the pattern `contents`. The run is printed.
    """
    run = read_override("run", overrides)
    if not isinstance(run, str) or not run:
        return overrides
    folder = resolve_pretrained(run)
    is_model = is_run_dir(folder) or is_diffusers_folder(folder)
    if not is_model and (newest := find_newest_run(folder, contents=contents)):
        print(f"run={run}: a folder of runs, using its newest {newest}", file=sys.stderr)
        folder = newest
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
        UserError: exit 2 for a network or a noise schedule that is not supported; exit 4 for
            damaged files.
    """
    network = pretrained.read_unet_config(str(folder), "run")
    scheduler = pretrained.read_json(folder / "scheduler" / "scheduler_config.json")
    size, num_classes = network["sample_size"], network.get("num_class_embeds") or 0
    data = {"image_size": size, "channels": network["in_channels"], "num_classes": num_classes}
    model = {"_target_": "diffusion_lit.networks.unet.PretrainedUNet", "path": str(folder), "take": "architecture"}
    data |= {"class_names": [str(label) for label in range(num_classes)], "render": "none"}
    config = {
        "name": folder.resolve().name,
        "data": data | {"resample": "bicubic", "fit": "crop", "background": [255, 255, 255], "alpha": "keep"},
        "model": model | {"image_size": size, "channels": network["in_channels"], "num_classes": num_classes},
        "diffusion": _diffusion(folder, scheduler),
        "weighting": read_option("weighting", "uniform"),
        "sampler": _sampler(scheduler),
        "label_dropout": 0.0, "guidance_scale": 1.0, "guidance_interval": None, "guidance_rescale": 0.0,
    }  # fmt: skip
    return resolve_architecture(config)


def _diffusion(folder: Path, scheduler: dict) -> dict:
    schedule, prediction = scheduler.get("beta_schedule", "linear"), scheduler.get("prediction_type", "epsilon")
    is_known = schedule in pretrained.BETA_SCHEDULES and prediction in pretrained.PREDICTION_TYPES
    if not is_known or scheduler.get("trained_betas") is not None:
        fault = f"beta_schedule={schedule} with prediction_type={prediction} or trained_betas is not supported"
        raise UserError(Exit.CONFIG, f"run={folder}: {fault}")
    return {
        "num_train_timesteps": scheduler.get("num_train_timesteps", 1000),
        "beta_schedule": pretrained.BETA_SCHEDULES[schedule],
        "beta_start": scheduler.get("beta_start", 0.0001),
        "beta_end": scheduler.get("beta_end", 0.02),
        "zero_terminal_snr": scheduler.get("rescale_betas_zero_snr", False),
        "prediction_type": prediction,
        "loss": "mse",
    }


def _sampler(scheduler: dict) -> dict:
    """Return DDPM with the settings of the pipeline if that is its scheduler, else DDIM."""
    name = "ddpm" if scheduler.get("_class_name") == "DDPMScheduler" else "ddim"
    settings = {"timestep_spacing": scheduler.get("timestep_spacing", "leading")}
    settings |= {"clip_x0": scheduler.get("clip_sample", True)}
    if name == "ddpm" and scheduler.get("variance_type") in ("fixed_small", "fixed_large"):
        settings["variance_type"] = scheduler["variance_type"]
    return read_option("sampler", name) | settings
