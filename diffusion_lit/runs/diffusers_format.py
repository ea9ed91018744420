"""Published models: a folder, or an id of the hub, in the layout of diffusers, read as if it were a run folder.

Ours has config.yaml besides, which says everything a run knows. Of others what can be known is taken from the files of
diffusers; what cannot (the names of classes, guidance) is left at its plainest.
"""

from pathlib import Path

from diffusion_lit.config.groups import read_option
from diffusion_lit.runs import checkpoints, pretrained
from diffusion_lit.runs.pretrained import PREDICTION_TYPES, SCHEDULES
from diffusion_lit.runs.warm_start import resolve_architecture
from diffusion_lit.system.errors import Exit, UserError

HUB_FILES = ("config.yaml", "model_index.json", "unet/config.json", "scheduler/scheduler_config.json")
HUB_FILES += (checkpoints.UNET_WEIGHTS, checkpoints.NETWORK_WEIGHTS)


def resolve_pretrained(run: str) -> Path:
    """The folder that `run=` means: one that is here, or of an id of the hub what was downloaded of it.

    Raises:
        UserError: exit 4 if there is none.
    """
    here = Path(run).expanduser()
    if here.exists() or not pretrained.is_hub_id(run):
        return here
    return pretrained.download_from_hub(run, "run", HUB_FILES)


def config_from_diffusers(folder: Path) -> dict:
    """What config.yaml of a run would say, of a folder that has only the files of diffusers.

    Raises:
        UserError: exit 2 for a network or noise levels that are not here; exit 4 for files that are damaged.
    """
    network = pretrained.read_unet_config(str(folder), "run")
    scheduler = pretrained.read_json(folder / "scheduler" / "scheduler_config.json")
    schedule, prediction = scheduler.get("beta_schedule", "linear"), scheduler.get("prediction_type", "epsilon")
    if schedule not in SCHEDULES or scheduler.get("trained_betas") is not None or prediction not in PREDICTION_TYPES:
        told = f"its noise ({schedule}) or prediction ({prediction})"
        raise UserError(Exit.CONFIG, f"run={folder}: {told} is not one of ours: it cannot be sampled here")
    size, num_classes = network["sample_size"], network.get("num_class_embeds") or 0
    data = {"image_size": size, "channels": network["in_channels"], "num_classes": num_classes}
    data |= {"class_names": [str(label) for label in range(num_classes)], "render": "none"}
    config = {
        "name": folder.resolve().name,
        "data": data | {"resample": "bicubic", "fit": "crop", "background": [255, 255, 255], "alpha": "keep"},
        "model": {
            "_target_": "diffusion_lit.networks.unet.PretrainedUNet",
            "path": str(folder), "take": "architecture",
            "image_size": size, "channels": network["in_channels"], "num_classes": num_classes,
        },
        "diffusion": {
            "num_train_timesteps": scheduler.get("num_train_timesteps", 1000),
            "beta_schedule": SCHEDULES[schedule],
            "beta_start": scheduler.get("beta_start", 0.0001),
            "beta_end": scheduler.get("beta_end", 0.02),
            "zero_terminal_snr": scheduler.get("rescale_betas_zero_snr", False),
            "prediction_type": prediction,
            "loss": "mse",
        },
        "weighting": read_option("weighting", "uniform"),
        "sampler": _sampler(scheduler),
        "label_dropout": 0.0, "guidance_scale": 1.0, "guidance_interval": None, "guidance_rescale": 0.0,
    }  # fmt: skip
    return resolve_architecture(config)


def _sampler(scheduler: dict) -> dict:
    """The scheduler of the folder if it is DDPM, as its pipeline would use it, else DDIM."""
    name = "ddpm" if scheduler.get("_class_name") == "DDPMScheduler" else "ddim"
    told = {"timestep_spacing": scheduler.get("timestep_spacing", "leading")}
    told |= {"clip_x0": scheduler.get("clip_sample", True)}
    if name == "ddpm" and scheduler.get("variance_type") in ("fixed_small", "fixed_large"):
        told["variance_type"] = scheduler["variance_type"]
    return read_option("sampler", name) | told
