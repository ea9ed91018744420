"""`python -m diffusion_lit.sample run=<folder>`: images from a trained run, which knows everything else itself."""

import json
import logging
import secrets
import time
from importlib.metadata import version
from pathlib import Path

from hydra.core.override_parser.types import Sweep
from omegaconf import DictConfig, OmegaConf

from diffusion_lit.conflicts import conflicts
from diffusion_lit.errors import Exit, UserError
from diffusion_lit.launch import launch
from diffusion_lit.overrides import as_word, value_of
from diffusion_lit.runs import checkpoints, folder
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
    settings = dict(folder.read_config(folder.require_run(run))["sampler"])
    name = settings.pop("name")
    if value_of("sampler", overrides) not in (None, name):
        return overrides
    rest = [word for word in overrides if not word.startswith("sampler=")]
    del settings["_target_"]
    return [f"sampler={name}", *[as_word(f"sampler.{key}", value) for key, value in settings.items()], *rest]


def check(config: DictConfig) -> None:
    if config.run is None:
        raise UserError(Exit.CONFIG, "run=null: needs a run folder")
    run_config = folder.read_config(folder.require_run(config.run))
    checkpoints.choose(Path(config.run).expanduser(), str(config.checkpoint), warn=lambda message: None)
    names, scale = run_config["data"]["class_names"], config.guidance_scale
    classes_of(config, names)
    if config.images_per_class and not names:
        raise UserError(Exit.CONFIG, f"images_per_class={config.images_per_class}: this run has no classes")
    values = {f"diffusion.{key}": value for key, value in run_config["diffusion"].items()}
    values |= {f"sampler.{key}": value for key, value in config.sampler.items()}
    if names and scale is not None:
        values |= {"label_dropout": run_config["label_dropout"], "guidance_scale": scale}
    faults = conflicts(values)
    if not names and scale not in (None, 1):
        faults.append(f"guidance_scale={scale}: the run has no classes to guide by")
    if faults:
        raise UserError(Exit.CONFIG, "\n  ".join(["this run cannot be sampled so:", *faults]))


def classes_of(config: DictConfig, names: list[str]) -> list[int]:
    """The labels asked for, by number or by name; all of them where nothing is asked."""
    if config.classes is None:
        return list(range(len(names)))
    asked = OmegaConf.to_container(config.classes) if OmegaConf.is_list(config.classes) else [config.classes]
    if not names:
        raise UserError(Exit.CONFIG, f"classes={asked}: this run has no classes")
    # a folder called 10 is class 10, wherever it stands in the order; other numbers count from 0
    numbers = {k: k for k in range(len(names))} | {word: names.index(str(word)) for word in asked if str(word) in names}
    for word in asked:
        if word not in numbers:
            listed = ", ".join(f"{k} {name}" if str(k) != name else name for k, name in enumerate(names))
            raise UserError(Exit.CONFIG, f"classes={asked}: {word} is no class of this run; there are {listed}")
    return [numbers[word] for word in asked]


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
    names, classes = model.class_names, classes_of(config, model.class_names)
    n = config.images_per_class * len(classes) if config.images_per_class else config.num_images
    labels = rows_of_classes(classes, n) if names else [0] * n
    seeds = column_seeds(config.seed, labels) if config.same_noise and names else image_seeds(config.seed, n)
    out = new_folder(config.out, run)

    steps = len(model.sampler.build(model.diffusion.table).timesteps)
    film = Film(range(n) if config.gif else [], steps, model.shape)
    started = time.perf_counter()
    with progress_bar("sampling") as bar:
        task = bar.add_task("", total=steps * -(-n // model.sampler.batch_size))

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
            {"file": f"{k:05d}.png", "seed": seed, "label": label if names else None, "class": names and names[label]}
            for k, (seed, label) in enumerate(zip(seeds, labels, strict=True))
        ],
    }
    render = model.config["data"].get("render", "none")  # older runs have no such key
    write(out, images, film.frames if config.gif else (), labels, names, manifest, config.npy, render)
    log.info("%d images in %.1f s, %.1f img/s", len(images), seconds, len(images) / seconds)
    log.info("grid       %s", folder.shown(out / "grid.png"))
    log.info("images     %s", folder.shown(out))


def new_folder(out: str | None, run: Path) -> Path:
    """The folder to fill: the one asked for, which must be empty, or a new one inside the run."""
    path = (
        Path(out).expanduser()
        if out
        else run / "generated" / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{secrets.token_hex(2)}"
    )
    if path.is_dir() and any(path.iterdir()):
        raise UserError(Exit.OUTPUT, f"out={path} is not empty: choose a new folder")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(Exit.OUTPUT, f"out={path} cannot be made: {error.strerror}") from None
    return path


def write(
    out: Path, images, frames, labels: list[int], names: list[str], manifest: dict, npy: bool, render: str
) -> None:
    """Numbered PNGs as the network made them, the grid, and what was asked for besides; the manifest last."""
    import numpy as np

    from diffusion_lit.images import on_checkerboard, save_gif, to_pil
    from diffusion_lit.sampling.previews import class_grid
    from diffusion_lit.skins import shown

    for entry, image in zip(manifest["images"], images, strict=True):
        to_pil(image).save(out / entry["file"])
    on_checkerboard(class_grid(shown(images, render), labels, names)).save(out / "grid.png")
    if len(frames):
        frames = shown(frames, render)
        save_gif([class_grid(frame, labels, names) for frame in frames], out / "denoising.gif")
    if npy:
        np.save(out / "images.npy", images.permute(0, 2, 3, 1).numpy())
    folder.replace_text(out / "manifest.json", json.dumps(manifest, indent=2) + "\n")


if __name__ == "__main__":
    main()
