"""`python -m diffusion_lit.export run=<folder> out=<folder>`: a trained run as a folder to share."""

import json
import logging
from importlib.metadata import version
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from diffusion_lit import sample
from diffusion_lit.cli.launch import launch
from diffusion_lit.config.compose import serving_faults
from diffusion_lit.runs import checkpoints, pretrained, run_dir, stored_config
from diffusion_lit.runs import settings as asked
from diffusion_lit.runs.model_card import card
from diffusion_lit.runs.settings import GUIDANCE
from diffusion_lit.system.errors import Exit, UserError
from diffusion_lit.system.files import replace_text

log = logging.getLogger("diffusion_lit.export")
NO_GUIDE = {"guide": None, "guide_checkpoint": "last"}
# what the recipe is, and what decodes pictures as the training pictures were; no place of this machine
GROUPS = ("model", "diffusion", "weighting", "ema", "sampler", "optimizer")
KEYS = ("name", "seed", "max_steps", "global_batch_size", "label_dropout", *GUIDANCE)
OF_DATA = (
    "image_size", "channels", "resample", "fit", "background", "alpha", "num_classes", "flip", "class_names", "render",
)  # fmt: skip
NAMED = {ours: theirs for theirs, ours in pretrained.SCHEDULES.items()}  # by diffusers


def main() -> None:
    launch("export", export, prepare=sample.with_the_runs_sampler, check=check)


def check(config: DictConfig) -> None:
    run_config = stored_config.read_sampling(run_dir.require_run(config.run))
    run = Path(config.run).expanduser()
    checkpoints.choose(run, str(config.checkpoint), warn=lambda message: None)
    faults = asked.faults(OmegaConf.merge(NO_GUIDE, config), run_config)
    faults += serving_faults(config.sampler, run_config["diffusion"], config.sampler.name)
    if config.push and not pretrained.is_hub_id(config.push):
        faults.append(f"push={config.push}: is no name of a model on the hub, such as me/digits")
    if faults:
        raise UserError(Exit.CONFIG, "\n  ".join(["this run cannot be exported so:", *faults]))


def export(config: DictConfig) -> None:
    from diffusion_lit.runs.load import as_asked

    model = as_asked(OmegaConf.merge(NO_GUIDE, config), log.warning)
    out = sample.new_folder(config.out, Path(config.run).expanduser())
    with run_dir.whole(out) as building:
        write(building, model, config)
    log.info("exported   %s", run_dir.shown(out))
    log.info("more       python -m diffusion_lit.sample run=%s", run_dir.shown(out))
    if config.push:
        upload(out, config.push, config.private)


def write(out: Path, model, config: DictConfig) -> None:
    """Network, scheduler, config.yaml, grid and card."""
    write_network(out, model)
    settings = published_config(model.config)
    held = checkpoints.read(model.checkpoint) if model.checkpoint.suffix == ".ckpt" else {}
    settings["exported"] = {
        "checkpoint": model.checkpoint.name,
        "step": held.get("global_step"),
        "weights": config.weights,
        "ema_length": config.ema_length,
        "data": held.get("ImageDataModule", {}).get("fingerprint"),
        "versions": {name: version(name) for name in ("diffusion_lit", "torch", "diffusers")},
    }
    replace_text(out / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(settings)))
    draw(out / "grid.png", model, config.seed)
    measured = measured_so(Path(config.run).expanduser(), model, config)
    name, by_diffusers = config.push or Path(config.out).name, (out / "model_index.json").exists()
    replace_text(out / "README.md", card(settings, measured, config.license, name, by_diffusers))


def write_network(out: Path, model) -> None:
    """unet/, scheduler/ and model_index.json of diffusers where it knows the network, else our own file of weights."""
    from safetensors.torch import save_file

    unet = getattr(model.net, "unet", None)
    if not hasattr(unet, "save_pretrained"):
        state = {name: tensor.contiguous().cpu() for name, tensor in model.net.state_dict().items()}
        save_file(state, out / checkpoints.NETWORK, {"format": "pt"})
        return
    unet.save_pretrained(out / "unet")
    scheduler = scheduler_of(model)
    if scheduler is not None:
        scheduler.save_pretrained(out / "scheduler")
        parts = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"]}
        index = {"_class_name": "DDPMPipeline", "_diffusers_version": version("diffusers")} | parts
        replace_text(out / "model_index.json", json.dumps(index, indent=2) + "\n")


def scheduler_of(model):
    """DDPM with the noise levels and the prediction of a run, as diffusers' own pipelines use it; None of a process or
    a prediction type that they have not."""
    from diffusers import DDPMScheduler

    settings, table = model.config["diffusion"], model.diffusion.table
    if (
        settings.get("process", "discrete") != "discrete"
        or settings["prediction_type"] not in pretrained.PREDICTION_TYPES
    ):
        return None
    schedule = NAMED.get(settings["beta_schedule"])
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
    """What a published model says of itself, in the words of a run, without any place on the machine it comes from."""
    kept = {key: config[key] for key in (*KEYS, *GROUPS) if key in config}
    kept["data"] = {key: config["data"][key] for key in OF_DATA if key in config["data"]}
    if "path" in kept["model"]:  # of the network that training began with
        kept["model"] = kept["model"] | {"path": Path(kept["model"]["path"]).name}
    return kept


def draw(path: Path, model, seed: int) -> None:
    from diffusion_lit.diffusion.seeds import image_seeds
    from diffusion_lit.imaging.grids import on_checkerboard
    from diffusion_lit.imaging.skins import shown
    from diffusion_lit.sampling.previews import class_grid, preview_labels
    from diffusion_lit.system.console import progress_bar

    labels, names = preview_labels(len(model.class_names)), model.class_names
    with progress_bar("sampling") as bar:
        batches = -(-len(labels) // model.sampler.batch_size)
        task = bar.add_task("", total=len(model.sampler.build(model.diffusion.table).timesteps) * batches)
        images = model.generate(labels, image_seeds(seed, len(labels)), lambda first, k, x: bar.advance(task))
    on_checkerboard(class_grid(shown(images, model.config["data"].get("render", "none")), labels, names)).save(path)


def measured_so(run: Path, model, config: DictConfig) -> dict:
    """The result of the newest evaluation of just these weights with just this sampler and guidance, or nothing."""
    from diffusion_lit.runs.load import settings_of

    ours = settings_of(model, OmegaConf.merge(NO_GUIDE, config))
    same = ("checkpoint", "weights", "ema_length", "sampler", "guide", *GUIDANCE)
    files = sorted(run.glob("evaluations/**/result.json"), key=lambda file: file.stat().st_mtime_ns)
    for file in reversed(files):
        result = run_dir.read_result(file.parent)
        settings = result.get("settings", {})
        if all(settings.get(key) == ours[key] for key in same):
            return result
    return {}


def upload(out: Path, name: str, private: bool) -> None:
    """Raises UserError (exit 75) if the hub does not take it; the folder is there all the same."""
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


if __name__ == "__main__":
    main()
