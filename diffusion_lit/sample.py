"""`python -m diffusion_lit.sample run=<folder>`: images from a trained run, which knows everything else itself."""

import json
import logging
import secrets
import time
from importlib.metadata import version
from pathlib import Path

from hydra.core.override_parser.types import Sweep
from omegaconf import DictConfig, OmegaConf

from diffusion_lit.classes import locate
from diffusion_lit.conflicts import conflicts
from diffusion_lit.errors import Exit, UserError
from diffusion_lit.launch import launch
from diffusion_lit.overrides import as_word, value_of
from diffusion_lit.rules import shown
from diffusion_lit.runs import checkpoints, folder
from diffusion_lit.sampling.labels import Label, blend_of, name_of, number_of, shares_of
from diffusion_lit.seeds import column_seeds, image_seeds

log = logging.getLogger("diffusion_lit.sample")


def main() -> None:
    launch("sample", sample, prepare=with_the_runs_sampler, check=check)


def with_the_runs_sampler(overrides: list[str], config_dir: str | None) -> list[str]:
    """The sampler the run was trained with, unless another one is asked for; single keys of it can be overridden."""
    run = value_of("run", overrides)
    if isinstance(run, Sweep):
        word = next(word for word in overrides if word.startswith("run="))
        raise UserError(Exit.CONFIG, f"{word}: one run at a time, its sampler is taken from it")
    if {"num_images", "images_per_class"} <= {word.partition("=")[0] for word in overrides}:
        raise UserError(Exit.CONFIG, "num_images and images_per_class are two words for one thing: leave one out")
    if not isinstance(run, str) or not run:
        return overrides
    settings = dict(folder.read_sampling(folder.require_run(run))["sampler"])
    name = settings.pop("name", None)
    if value_of("sampler", overrides) not in (None, name):
        return overrides
    rest = [word for word in overrides if not word.startswith("sampler=")]
    settings.pop("_target_", None)
    return [f"sampler={name}", *[as_word(f"sampler.{key}", value) for key, value in settings.items()], *rest]


def check(config: DictConfig) -> None:
    if config.run is None:
        raise UserError(Exit.CONFIG, "run=null: needs a run folder")
    run_config = folder.read_sampling(folder.require_run(config.run))
    checkpoints.choose(Path(config.run).expanduser(), str(config.checkpoint), warn=lambda message: None)
    names, scale = run_config["data"]["class_names"], config.guidance_scale
    labels_of(config, names)
    if config.context is not None:
        network = locate(run_config["model"].get("_target_"))
        if not getattr(network, "takes_blends", False):
            told = f"context: {network.__name__}, the network of this run, takes one class at a time"
            raise UserError(Exit.CONFIG, f"{told}; model=context_unet takes blends of them")
    for key in ("images_per_class", "per_class"):
        if config[key] and not names:
            raise UserError(Exit.CONFIG, f"{key}={shown(config[key])}: this run has no classes")
    values = {f"diffusion.{key}": value for key, value in run_config["diffusion"].items()}
    values |= {f"sampler.{key}": value for key, value in config.sampler.items()}
    if names and scale is not None:
        values |= {"label_dropout": run_config["label_dropout"], "guidance_scale": scale}
    faults = conflicts(values)
    if not names and scale not in (None, 1):
        faults.append(f"guidance_scale={scale}: the run has no classes to guide by")
    if faults:
        raise UserError(Exit.CONFIG, "\n  ".join(["this run cannot be sampled so:", *faults]))


def labels_of(config: DictConfig, names: list[str]) -> list[Label]:
    """The classes asked for, by number or by name, or the blends of them; all classes where nothing is asked."""
    key = "classes" if config.context is None else "context"
    if config[key] is None:
        return list(range(len(names)))
    asked = OmegaConf.to_container(config[key]) if OmegaConf.is_config(config[key]) else config[key]
    told = f"{key}={shown(asked)}"
    if not names:
        raise UserError(Exit.CONFIG, f"{told}: this run has no classes")
    read = {"classes": number_of, "context": blend_of}[key]
    try:
        return [read(one, names) for one in (asked if isinstance(asked, list) else [asked])]
    except ValueError as error:
        raise UserError(Exit.CONFIG, f"{told}: {error}") from None


def sample(config: DictConfig) -> None:
    from diffusion_lit.console import progress_bar
    from diffusion_lit.runs.trained import Trained
    from diffusion_lit.sampling.previews import Film, rows_of_classes

    run = Path(config.run).expanduser()
    model = Trained(
        run,
        checkpoint=str(config.checkpoint),
        weights=config.weights,
        device=config.device,
        sampler=OmegaConf.to_container(config.sampler),
        guidance_scale=config.guidance_scale,
        warn=log.warning,
    )
    names, rows = model.class_names, labels_of(config, model.class_names)
    n = config.images_per_class * len(rows) if config.images_per_class else config.num_images
    labels = rows_of_classes(rows, n) if names else [0] * n
    seeds = column_seeds(config.seed, labels) if config.same_noise and names else image_seeds(config.seed, n)
    out = new_folder(config.out, run)

    steps = len(model.sampler.build(model.diffusion.table).timesteps)
    calls = steps * -(-n // model.sampler.batch_size)
    film = Film(range(n) if config.gif else [], steps, model.shape)
    started = time.perf_counter()
    with progress_bar("sampling") as bar:
        task = bar.add_task("", total=calls)

        def on_step(first: int, k: int, x) -> None:
            bar.advance(task)
            film(first, k, x)

        images = model.generate(labels, seeds, on_step)
    seconds = time.perf_counter() - started

    manifest = {
        "checkpoint": model.checkpoint.name,
        "weights": config.weights,
        "seed": config.seed,
        "same_noise": config.same_noise,
        "guidance_scale": model.config["guidance_scale"] if names else None,
        "sampler": model.config["sampler"],
        "versions": {name: version(name) for name in ("diffusion_lit", "torch", "diffusers")},
        "images": [
            {"file": f"{k:05d}.png", "seed": seed, **described(label, names)}
            for k, (seed, label) in enumerate(zip(seeds, labels, strict=True))
        ],
    }
    render = model.config["data"].get("render", "none")  # older runs have no such key
    write(out, images, film.frames, labels, names, manifest, config, render)
    rates = len(images) / seconds, calls / seconds
    log.info("%d images in %.1f s, %.1f img/s, %.1f it/s (steps of a batch)", len(images), seconds, *rates)
    log.info("grid       %s", folder.shown(out / "grid.png"))
    log.info("images     %s", folder.shown(out))


def described(label: Label, names: list[str]) -> dict:
    """What an image is of, for the manifest; a blend in the words that ask for it."""
    if not names:
        return {"label": None, "class": None}
    context = {"context": shares_of(label, names)} if isinstance(label, tuple) else {"label": label}
    return context | {"class": name_of(label, names)}


def new_folder(out: str | None, run: Path, kind: str = "generated") -> Path:
    """The folder to fill: the one asked for, which must be empty, or a new one inside the run."""
    path = (
        Path(out).expanduser() if out else run / kind / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{secrets.token_hex(2)}"
    )
    if path.is_dir() and any(path.iterdir()):
        raise UserError(Exit.OUTPUT, f"out={path} is not empty: choose a new folder")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(Exit.OUTPUT, f"out={path} cannot be made: {error.strerror}") from None
    return path


def write(
    out: Path, images, frames, labels: list[Label], names: list[str], manifest: dict, config: DictConfig, render: str
) -> None:
    """Numbered PNGs as the network made them, the grid, and what `config` asks for besides; the manifest last."""
    import numpy as np

    from diffusion_lit.images import on_checkerboard, save_gif, to_pil
    from diffusion_lit.sampling.previews import CLASS_MS, class_grid, class_pages
    from diffusion_lit.skins import shown as as_shown

    for entry, image in zip(manifest["images"], images, strict=True):
        to_pil(image).save(out / entry["file"])
    seen = as_shown(images, render)
    on_checkerboard(class_grid(seen, labels, names)).save(out / "grid.png")
    if config.per_class:
        pages = class_pages(seen, labels, names)
        for k, (name, page) in enumerate(pages):
            on_checkerboard(page).save(out / f"grid_{k:03d}_{name.replace('/', '_')[:50]}.png")
        save_gif([page for _, page in pages], out / "classes.gif", frame_ms=CLASS_MS, hold_ms=CLASS_MS)
    if config.gif:
        frames = as_shown(frames, render)
        save_gif([class_grid(frame, labels, names) for frame in frames], out / "denoising.gif")
    if config.npy:
        np.save(out / "images.npy", images.permute(0, 2, 3, 1).numpy())
    folder.replace_text(out / "manifest.json", json.dumps(manifest, indent=2) + "\n")


if __name__ == "__main__":
    main()
