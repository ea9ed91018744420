"""Publish a trained run as a folder to share: weights and scheduler in diffusers' format, config, grid, model card."""

import copy
import json
import logging
import pprint
import shlex
import shutil
import textwrap
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from diffusion_lit.config.secrets import hide_paths, redact_secrets
from diffusion_lit.diffusion.seeds import image_seeds
from diffusion_lit.imaging.grids import add_checkerboard
from diffusion_lit.imaging.palettes import PALETTE_FILE
from diffusion_lit.imaging.rows import describe_rows
from diffusion_lit.imaging.skins import render_images
from diffusion_lit.runs import checkpoints, pretrained, run_dir
from diffusion_lit.runs.load import TrainedModel, describe_sampling, generate_with_progress, read_package_versions
from diffusion_lit.runs.model_card import render_model_card
from diffusion_lit.runs.stored_config import GUIDANCE_KEYS
from diffusion_lit.sampling.labels import row_names
from diffusion_lit.sampling.previews import ROWS, draw_class_grid, preview_labels
from diffusion_lit.system.errors import Exit, UserError
from diffusion_lit.system.files import write_text_atomically

PIPELINE_FILE = "pipeline.py"
log = logging.getLogger("diffusion_lit.export")
# keys of config.yaml that are published: the training recipe and how images are decoded, but no local path
KEYS = ("name", "seed", "max_steps", "global_batch_size", "label_dropout", *GUIDANCE_KEYS)
KEYS += ("text_encoder", "preview_prompts", "model", "diffusion", "weighting", "ema")
KEYS += ("sampler", "optimizer", "lr_schedule")
DATA_KEYS = (
    "image_size", "channels", "resample", "fit", "background", "alpha", "num_classes", "flip", "class_names", "render",
    "value_range", "captions", "caption_column", "caption_colors",
)  # fmt: skip
DIFFUSERS_SCHEDULES = {ours: theirs for theirs, ours in pretrained.BETA_SCHEDULES.items()}


def publish_model(out: Path, model: TrainedModel, config: DictConfig) -> None:
    """Write network, scheduler, config.yaml, grid and model card into a folder.

    Args:
        out: an empty folder.
        model: the model.
        config: of `conf/export.yaml`.
    """
    run = Path(config.run).expanduser()
    dtype = getattr(torch, config.dtype)
    model.net.load_state_dict(cast(cast(model.net.state_dict(), dtype), torch.float32))  # the grid shows the file's
    write_network(out, model, dtype)
    published = make_published_config(model.config)
    published["exported"] = {
        "checkpoint": model.checkpoint.name,
        **(dict.fromkeys(("step", "seconds", "data")) | model.facts),
        "weights": config.weights,
        "ema_length": config.ema_length,
        "versions": read_package_versions(),
        **describe_training(run),
    }
    write_text_atomically(out / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(published)))
    if (palette := run / PALETTE_FILE).is_file():
        shutil.copyfile(palette, out / PALETTE_FILE)
    names = row_names(model.config)
    labels = preview_labels(len(names), model.config.get("preview_prompts") or ())
    title = describe_rows(len(names), ROWS).lstrip(", ")
    images = generate_with_progress(model, labels, image_seeds(config.seed, len(labels))).images
    add_checkerboard(draw_class_grid(render_images(images, model.render), labels, names, title)).save(out / "grid.png")
    result = find_evaluation(run, describe_sampling(model, config))
    name, has_pipeline = config.push or Path(config.out).name, (out / PIPELINE_FILE).exists()
    card = render_model_card(published, result, config.license, config.data_license, name, has_pipeline)
    write_text_atomically(out / "README.md", card)
    for file in filter(Path.is_file, out.rglob("*")):  # safetensors hides its files from other users
        file.chmod((out / "README.md").stat().st_mode)


def cast(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return tensors on the CPU, those of floats as `dtype`."""
    kinds = {name: dtype if tensor.is_floating_point() else tensor.dtype for name, tensor in state.items()}
    return {name: tensor.to("cpu", kinds[name]).contiguous() for name, tensor in state.items()}


def write_network(out: Path, model: TrainedModel, dtype: torch.dtype = torch.float32) -> None:
    """Write the network as `dtype`: a network of diffusers as its pipeline, any other as a safetensors file."""
    from safetensors.torch import save_file

    unet = getattr(model.net, "unet", None)
    text = text_settings(model)
    needs_encoder = hasattr(model.net, "supports_prompts") and not text  # of transformers
    if needs_encoder or not hasattr(unet, "save_pretrained"):
        save_file(cast(model.net.state_dict(), dtype), out / checkpoints.NETWORK_WEIGHTS, {"format": "pt"})
        return
    nn.Module.to(copy.deepcopy(unet), dtype).save_pretrained(out / "unet")  # that of diffusers prints a warning
    scheduler, parts = make_scheduler(model), {"unet": ["diffusers", type(unet).__name__]}
    if scheduler is not None:
        scheduler.save_pretrained(out / "scheduler")
        parts["scheduler"] = ["diffusers", type(scheduler).__name__]
    is_plain = not (scheduler is None or model.class_names or text)  # DDPMPipeline passes no condition
    plain = "DDIMPipeline" if model.config.get("distill") else "DDPMPipeline"
    name = plain if is_plain else ["pipeline", "DiffusionLitPipeline"]
    index = {"_class_name": name, "_diffusers_version": version("diffusers")} | parts
    write_text_atomically(out / "model_index.json", json.dumps(index, indent=2) + "\n")
    source = Path(__file__).with_name("exported_pipeline.py").read_text(encoding="utf-8")
    settings = pprint.pformat(pipeline_settings(model), width=110, compact=True, sort_dicts=False)
    settings = textwrap.indent(settings, "        ").strip()
    write_text_atomically(out / PIPELINE_FILE, source.replace("dict[str, Any]] = {}", f"dict[str, Any]] = {settings}"))


def describe_training(run: Path) -> dict:
    """Return the last command of a run, without `resume`, paths and secrets; or {}."""
    with suppress(UserError):
        typed = [override for override in run_dir.read_overrides(run) if not override.startswith("resume=")]
        overrides = [str(redact_secrets(hide_paths(override))) for override in typed]
        return {"command": shlex.join(["python", "-m", "diffusion_lit.train", *overrides])}
    return {}


def pipeline_settings(model: TrainedModel) -> dict:
    """Return what the pipeline file of a model, `exported_pipeline`, needs beside the network."""
    process, sampler = model.diffusion.process, model.sampler
    return {
        "class_names": [] if model.config.get("text_encoder") else model.class_names,
        "text": text_settings(model),
        "shape": model.codec.shape,
        "has_hard_alpha": model.codec.has_hard_alpha,
        "has_guidance": model.config["label_dropout"] > 0,
        **model.guidance,
        "process": process.name,
        "prediction_type": model.diffusion.prediction_type,
        "sigma_data": process.sigma_data,
        "sigma_range": (process.sigma_min, process.sigma_max) if process.name == "edm" else None,
        "scheduler": sampler.scheduler.__name__,
        "arguments": sampler.arguments,
        "step_arguments": sampler.step_arguments,
        "steps": sampler.steps,
        "is_student": bool(model.config.get("distill")),
        "batch_size": sampler.batch_size,
        "clip_x0": sampler.clip_x0,
        "num_train_timesteps": process.num_train_timesteps,
        "betas": process.betas.tolist() if process.is_discrete else None,
    }


def text_settings(model: TrainedModel) -> dict | None:
    """Return the vocabulary of a model with `text_encoder=words`, and the prompts of its grid; None for others."""
    encoder = model.config.get("text_encoder") or {}
    if "words" not in encoder:
        return None
    settings = {key: encoder[key] for key in ("words", "rare_words", "max_tokens", "buckets", "ngram")}
    return settings | {"preview_prompts": model.config["preview_prompts"]}


def make_scheduler(model: TrainedModel) -> DDPMScheduler | DDIMScheduler | None:
    """Return DDPM, of a student DDIM, with the schedule and prediction type of a run; None if it has others."""
    settings, table = model.config["diffusion"], model.diffusion.process
    is_discrete = settings.get("process", "discrete") == "discrete"
    if not is_discrete or settings["prediction_type"] not in pretrained.PREDICTION_TYPES:
        return None
    schedule = DIFFUSERS_SCHEDULES.get(settings["beta_schedule"])
    if schedule and not settings["zero_terminal_snr"]:
        noise = {"beta_schedule": schedule, "beta_start": settings["beta_start"], "beta_end": settings["beta_end"]}
    else:
        noise = {"trained_betas": table.betas.tolist()}
    scheduler = DDIMScheduler if model.config.get("distill") else DDPMScheduler
    return scheduler(
        num_train_timesteps=table.num_train_timesteps,
        prediction_type=settings["prediction_type"],
        clip_sample=model.sampler.clip_x0,
        timestep_spacing=model.config["sampler"].get("timestep_spacing", "trailing"),
        **noise,
    )


def make_published_config(config: dict) -> dict:
    """Return the keys of a run's configuration that are published, without local paths."""
    published = {key: config[key] for key in KEYS if key in config}
    published["data"] = {key: config["data"][key] for key in DATA_KEYS if key in config["data"]}
    if settings := config.get("distill"):  # a published student has learned its last stage
        stages = [config["sampler"]["steps"]]
        published["distill"] = settings | {"teacher": Path(settings["teacher"]).name, "stages": stages}
    encoder = published.get("text_encoder") or {}
    if Path(encoder.get("path", "")).is_dir() and encoder.get("digest"):  # of this machine, not of the hub
        published["text_encoder"] = encoder | {"path": Path(encoder["path"]).name}
    if "path" in published["model"]:  # of the weights that training started from
        published["model"] = published["model"] | {"path": Path(published["model"]["path"]).name}
    return published


def find_evaluation(run: Path, settings: dict) -> dict:
    """Return the newest result of `evaluate` with the weights, sampler and guidance of `settings`, or {}."""
    keys = ("checkpoint", "weights", "ema_length", "sampler", "guide", *GUIDANCE_KEYS)
    for file in reversed(run_dir.list_evaluations(run)):
        result = run_dir.read_result(file.parent)
        if all(result.get("settings", {}).get(key) == settings[key] for key in keys):
            return result
    return {}


def upload_to_hub(out: Path, name: str, private: bool) -> None:
    """Upload a folder to the hub.

    Raises UserError (exit 75) if that fails; the folder stays.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(name, private=private, exist_ok=True)
        url = api.upload_folder(repo_id=name, folder_path=out)
    except Exception as error:  # requests, the hub and the disk have no common class of errors
        reason = str(error).splitlines()[0]
        upload = shlex.join(["hf", "upload", name, str(out), *["--private"] * private])
        hint = f"{out} is complete: run `hf auth login`, then `{upload}`"
        raise UserError(Exit.INTERRUPTED, f"push={name}: {reason}. {hint}") from None
    log.info("pushed     %s", url)
