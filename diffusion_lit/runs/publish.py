"""A trained run as a folder to share: weights and scheduler as diffusers writes them, config, grid and model card."""

import json
import logging
from importlib.metadata import version
from pathlib import Path

from diffusers import DDPMScheduler
from omegaconf import DictConfig, OmegaConf

from diffusion_lit.diffusion.seeds import image_seeds
from diffusion_lit.imaging.grids import on_checkerboard
from diffusion_lit.imaging.skins import shown
from diffusion_lit.runs import checkpoints, pretrained, run_dir
from diffusion_lit.runs.load import TrainedModel, generate_with_progress, package_versions, sampling_settings
from diffusion_lit.runs.model_card import render_model_card
from diffusion_lit.runs.stored_config import GUIDANCE_KEYS
from diffusion_lit.sampling.previews import class_grid, preview_labels
from diffusion_lit.system.errors import Exit, UserError
from diffusion_lit.system.files import write_text_atomically

log = logging.getLogger("diffusion_lit.export")
# the recipe, and how images are decoded; no path of this machine
KEYS = ("name", "seed", "max_steps", "global_batch_size", "label_dropout", *GUIDANCE_KEYS)
KEYS += ("model", "diffusion", "weighting", "ema", "sampler", "optimizer", "lr_schedule")
OF_DATA = (
    "image_size", "channels", "resample", "fit", "background", "alpha", "num_classes", "flip", "class_names", "render",
)  # fmt: skip
OF_DIFFUSERS = {ours: theirs for theirs, ours in pretrained.BETA_SCHEDULES.items()}


def publish_model(out: Path, model: TrainedModel, config: DictConfig) -> None:
    """Write network, scheduler, config.yaml, grid and model card into a folder."""
    write_network(out, model)
    checkpoint = checkpoints.load_checkpoint(model.checkpoint) if model.checkpoint.suffix == ".ckpt" else {}
    settings = published_config(model.config)
    settings["exported"] = {
        "checkpoint": model.checkpoint.name,
        "step": checkpoint.get("global_step"),
        "weights": config.weights,
        "ema_length": config.ema_length,
        "data": checkpoint.get("ImageDataModule", {}).get("fingerprint"),
        "versions": package_versions(),
    }
    write_text_atomically(out / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(settings)))
    labels, names = preview_labels(len(model.class_names)), model.class_names
    images = generate_with_progress(model, labels, image_seeds(config.seed, len(labels))).images
    on_checkerboard(class_grid(shown(images, model.render), labels, names)).save(out / "grid.png")
    measured = find_evaluation(Path(config.run).expanduser(), sampling_settings(model, config))
    name, by_diffusers = config.push or Path(config.out).name, (out / "model_index.json").exists()
    write_text_atomically(out / "README.md", render_model_card(settings, measured, config.license, name, by_diffusers))


def write_network(out: Path, model: TrainedModel) -> None:
    """Write unet/, scheduler/ and model_index.json of diffusers where it has the network, else a file of weights."""
    from safetensors.torch import save_file

    unet = getattr(model.net, "unet", None)
    if not hasattr(unet, "save_pretrained"):
        state = {name: tensor.contiguous().cpu() for name, tensor in model.net.state_dict().items()}
        save_file(state, out / checkpoints.NETWORK_WEIGHTS, {"format": "pt"})
        return
    unet.save_pretrained(out / "unet")
    scheduler = ddpm_scheduler(model)
    if scheduler is not None:
        scheduler.save_pretrained(out / "scheduler")
        parts = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"]}
        index = {"_class_name": "DDPMPipeline", "_diffusers_version": version("diffusers")} | parts
        write_text_atomically(out / "model_index.json", json.dumps(index, indent=2) + "\n")


def ddpm_scheduler(model: TrainedModel) -> DDPMScheduler | None:
    """Return DDPM with the noise levels and prediction type of a run; None where diffusers' pipelines lack these."""
    settings, table = model.config["diffusion"], model.diffusion.table
    discrete = settings.get("process", "discrete") == "discrete"
    if not discrete or settings["prediction_type"] not in pretrained.PREDICTION_TYPES:
        return None
    schedule = OF_DIFFUSERS.get(settings["beta_schedule"])
    if schedule and not settings["zero_terminal_snr"]:
        noise = {"beta_schedule": schedule, "beta_start": settings["beta_start"], "beta_end": settings["beta_end"]}
    else:
        noise = {"trained_betas": table.betas.tolist()}
    return DDPMScheduler(
        num_train_timesteps=table.num_train_timesteps,
        prediction_type=settings["prediction_type"],
        clip_sample=model.sampler.clip_x0,
        timestep_spacing=model.config["sampler"].get("timestep_spacing", "trailing"),
        **noise,
    )


def published_config(config: dict) -> dict:
    """Return what a published model says of itself, with the keys of a run and no path of this machine."""
    kept = {key: config[key] for key in KEYS if key in config}
    kept["data"] = {key: config["data"][key] for key in OF_DATA if key in config["data"]}
    if "path" in kept["model"]:  # of the network that training began with
        kept["model"] = kept["model"] | {"path": Path(kept["model"]["path"]).name}
    return kept


def find_evaluation(run: Path, settings: dict) -> dict:
    """Return the newest result of `evaluate` with the weights, sampler and guidance of `settings`, or {}."""
    same = ("checkpoint", "weights", "ema_length", "sampler", "guide", *GUIDANCE_KEYS)
    files = sorted(run.glob("evaluations/**/result.json"), key=lambda file: file.stat().st_mtime_ns, reverse=True)
    results = (run_dir.read_result(file.parent) for file in files)
    return next((r for r in results if all(r.get("settings", {}).get(key) == settings[key] for key in same)), {})


def upload_to_hub(out: Path, name: str, private: bool) -> None:
    """Upload a folder to the hub. Raises UserError (exit 75) if the hub does not take it; the folder stays."""
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(name, private=private, exist_ok=True)
        where = api.upload_folder(repo_id=name, folder_path=out)
    except Exception as error:  # requests, the hub and the disk raise each their own
        why = str(error).splitlines()[0]
        raise UserError(
            Exit.INTERRUPTED, f"push={name}: {why}; {out} is whole: `hf auth login`, then `hf upload {name} {out}`"
        ) from None
    log.info("pushed     %s", where)
