"""`python -m diffusion_lit.sample run=<folder>`: images from a trained run, which knows everything else itself."""

import json
import logging
import secrets
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from hydra.core.override_parser.types import Sweep
from omegaconf import DictConfig, OmegaConf

from diffusion_lit.cli.launch import launch
from diffusion_lit.config.compose import CONF, serving_faults
from diffusion_lit.config.overrides import as_word, value_of
from diffusion_lit.config.schema import shown
from diffusion_lit.config.targets import locate
from diffusion_lit.distributed import collectives, slurm
from diffusion_lit.runs import checkpoints, diffusers_format, run_dir, stored_config
from diffusion_lit.runs import settings as asked
from diffusion_lit.sampling.labels import Label, blend_of, name_of, number_of, shares_of
from diffusion_lit.system import console
from diffusion_lit.system.errors import Exit, UserError
from diffusion_lit.system.files import replace_text

log = logging.getLogger("diffusion_lit.sample")


def main() -> None:
    launch("sample", sample, prepare=with_the_runs_sampler, check=check)


def with_the_runs_sampler(overrides: list[str], config_dir: str | None) -> list[str]:
    """The sampler the run was trained with, unless another one is asked for; single keys of it can be overridden."""
    run = value_of("run", overrides)
    if isinstance(run, Sweep):
        word = next(word for word in overrides if word.startswith("run="))
        raise UserError(Exit.CONFIG, f"{word}: one run at a time, its sampler is taken from it")
    for pair in (("num_images", "images_per_class"), ("seed", "seeds")):
        if set(pair) <= {word.partition("=")[0] for word in overrides}:
            raise UserError(Exit.CONFIG, f"{' and '.join(pair)} are two words for one thing: leave one out")
    if not isinstance(run, str) or not run:
        return overrides
    found = diffusers_format.located(run)
    if str(found) != str(Path(run).expanduser()):  # of the hub, and now on this machine
        overrides = [as_word("run", found) if word.startswith("run=") else word for word in overrides]
    settings = dict(stored_config.read_sampling(run_dir.require_run(found))["sampler"])
    name = settings.pop("name", None)
    if value_of("sampler", overrides) not in (None, name):
        return overrides
    rest = [word for word in overrides if not word.startswith("sampler=")]
    settings.pop("_target_", None)
    return [f"sampler={name}", *[as_word(f"sampler.{key}", value) for key, value in settings.items()], *rest]


def check(config: DictConfig) -> None:
    if config.run is None:
        raise UserError(Exit.CONFIG, "run=null: needs a run folder")
    run_config = stored_config.read_sampling(run_dir.require_run(config.run))
    checkpoints.choose(Path(config.run).expanduser(), str(config.checkpoint), warn=lambda message: None)
    names = run_config["data"]["class_names"]
    stops = labels_of(config, names)
    if config.context is not None or config.interpolate:
        network = locate(run_config["model"].get("_target_"))
        if not getattr(network, "takes_blends", False):
            told = f"{network.__name__}, the network of this run, takes one class at a time"
            key = "interpolate" if config.interpolate else "context"
            raise UserError(Exit.CONFIG, f"{key}: {told}; model=unet, dit, simple_unet or context_unet take blends")
    for key in ("images_per_class", "per_class", "interpolate"):
        if config[key] and not names:
            raise UserError(Exit.CONFIG, f"{key}={shown(config[key])}: this run has no classes")
    if config.interpolate and len(stops) < 2:
        raise UserError(Exit.CONFIG, "interpolate=true: needs two classes or blends to go between")
    faults = asked.faults(config, run_config)
    faults += serving_faults(config.sampler, run_config["diffusion"], config.sampler.name)
    if config.init is not None and not config.sampler.get("starts_anywhere"):
        there = {file.stem: OmegaConf.load(file) for file in sorted(CONF.glob("sampler/*.yaml"))}
        able = [name for name, settings in there.items() if settings.get("starts_anywhere")]
        faults.append(f"init: sampler={config.sampler.name} cannot start in the middle; {', '.join(able)} can")
    if faults:
        raise UserError(Exit.CONFIG, "\n  ".join(["this run cannot be sampled so:", *faults]))
    originals_of(config, run_config)


def originals_of(config: DictConfig, run_config: dict):
    """The pictures to edit, as the run's training pictures were read, or None."""
    if config.init is None:
        return None
    from diffusion_lit.data.decoding import decoding_of
    from diffusion_lit.data.originals import read

    return read(config.init, config.mask, decoding_of(run_config["data"]))


def labels_of(config: DictConfig, names: list[str]) -> list[Label]:
    """The classes asked for, by number or by name, or the blends of them; all classes where nothing is asked."""
    key = "classes" if config.context is None else "context"
    if config[key] is None:
        return list(range(len(names)))
    wanted = OmegaConf.to_container(config[key]) if OmegaConf.is_config(config[key]) else config[key]
    told = f"{key}={shown(wanted)}"
    if not names:
        raise UserError(Exit.CONFIG, f"{told}: this run has no classes")
    read = {"classes": number_of, "context": blend_of}[key]
    try:
        return [read(one, names) for one in (wanted if isinstance(wanted, list) else [wanted])]
    except ValueError as error:
        raise UserError(Exit.CONFIG, f"{told}: {error}") from None


def sample(config: DictConfig) -> None:
    if config.shards:
        in_shards(config)
        return
    from diffusion_lit.runs.load import as_asked, settings_of
    from diffusion_lit.sampling.editing import edit_of
    from diffusion_lit.sampling.previews import Film
    from diffusion_lit.sampling.request import picture_of, wanted
    from diffusion_lit.system.console import progress_bar

    model = as_asked(config, log.warning)
    names, stops = model.class_names, labels_of(config, model.class_names)
    originals = originals_of(config, model.config)
    requests = wanted(config, stops, len(names), len(originals.files) if originals else 1)
    labels, seeds = [image.label for image in requests], [image.seed for image in requests]
    edit = edit_of(originals, [image.row[0] for image in requests], config) if originals else None
    out = new_folder(config.out, Path(config.run).expanduser())

    evaluations = len(model.sampler.build(model.diffusion.table).timesteps)
    plan = edit.plan(evaluations) if edit else range(evaluations)
    calls = len(plan) * -(-len(requests) // model.sampler.batch_size)
    film = Film(range(len(requests)) if config.gif else [], evaluations - plan[0], model.shape)
    started = time.perf_counter()
    with progress_bar("sampling") as bar:
        task = bar.add_task("", total=calls)

        def on_step(first: int, k: int, x) -> None:
            bar.advance(task)
            film(first, k - plan[0], x)

        images = model.generate(labels, seeds, on_step, edit)
    seconds = time.perf_counter() - started

    manifest = settings_of(model, config) | {
        "same_noise": config.same_noise,
        "edit": edited(originals, edit) if edit else None,
        "images": [{"file": f"{k:05d}.png", **described(image, names, originals)} for k, image in enumerate(requests)],
    }
    render = model.config["data"].get("render", "none")  # older runs have no such key
    drawn = partial(picture_of, asked=requests, class_names=names, originals=originals, render=render)
    write(out, images, film.frames, drawn, labels, names, manifest, config, render)
    rates = len(images) / seconds, calls / seconds
    log.info("%d images in %.1f s, %.1f img/s, %.1f it/s (steps of a batch)", len(images), seconds, *rates)
    log.info("grid       %s", run_dir.shown(out / "grid.png"))
    log.info("images     %s", run_dir.shown(out))


def in_shards(config: DictConfig) -> None:
    """Many images, by every process that is started with the same words."""
    from diffusion_lit.runs import shards
    from diffusion_lit.runs.load import as_asked, settings_of
    from diffusion_lit.sampling.request import wanted

    model, out = as_asked(one_of_several(config), log.warning), Path(config.out).expanduser()
    requests = wanted(config, labels_of(config, model.class_names), len(model.class_names))
    labels, seeds = [image.label for image in requests], [image.seed for image in requests]
    settings = settings_of(model, config) | {"same_noise": config.same_noise}
    made = shards.generate(model, shards.Asked(labels, seeds, config.shards, settings), out)
    log.info("%d images in %.1f s of all processes, %d shards", len(labels), made["seconds"], len(made["shards"]))
    log.info("grid       %s", run_dir.shown(out / "grid.png"))
    log.info("images     %s  %s", run_dir.shown(out / made["file"]), made["blake2b"])


def one_of_several(config: DictConfig) -> DictConfig:
    """Of a process that a launcher started beside others: a device of its own, and a terminal that the first one has
    to itself."""
    slurm.as_torchrun()
    if collectives.launcher_env("RANK"):
        console.hush()
    place = collectives.launcher_env("LOCAL_RANK")
    if place is None or config.device != "auto":
        return config
    import torch

    gpus = torch.cuda.device_count()
    return OmegaConf.merge(config, {"device": f"cuda:{place % gpus}"}) if gpus > 1 else config


def described(image, names: list[str], originals) -> dict:
    """What an image came from and what it is of, for the manifest; a blend in the words that ask for it."""
    told = {"seed": image.seed if isinstance(image.seed, int) else image.seed._asdict()}
    if originals:
        told["init"] = str(originals.files[image.row[0]])
    if not names:
        return told | {"label": None, "class": None}
    blend = isinstance(image.label, tuple)
    told |= {"context": shares_of(image.label, names)} if blend else {"label": image.label}
    return told | {"class": name_of(image.label, names)}


def edited(originals, edit) -> dict:
    """What was made of what, for the manifest."""
    from diffusion_lit.data.originals import fingerprint

    mask = {"mask": fingerprint(originals.mask_file), "resample": edit.resample} if originals.mask_file else {}
    return {"strength": edit.strength, **mask, "init": [fingerprint(file) for file in originals.files]}


def new_folder(out: str | None, run: Path, kind: str = "generated") -> Path:
    """The folder to fill: the one asked for, which must be empty, or a new one inside the run; of a published model,
    which is to stay as it is, in outputs/."""
    home = run if (run / "checkpoints").is_dir() else Path("outputs")
    stamp = f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{secrets.token_hex(2)}"
    path = Path(out).expanduser() if out else home / kind / stamp
    if path.is_dir() and any(path.iterdir()):
        raise UserError(Exit.OUTPUT, f"out={path} is not empty: choose a new folder")
    return run_dir.made(path)


def write(
    out: Path, images, frames, drawn: Callable, labels: list[Label], names: list[str], manifest: dict,
    config: DictConfig, render: str,
) -> None:  # fmt: skip
    """Numbered PNGs as the network made them, the grid as `drawn`, what `config` asks for; the manifest last."""
    import numpy as np

    from diffusion_lit.imaging.grids import on_checkerboard, save_gif, to_pil
    from diffusion_lit.imaging.skins import shown as as_shown
    from diffusion_lit.sampling.previews import CLASS_MS, class_pages

    for entry, image in zip(manifest["images"], images, strict=True):
        to_pil(image).save(out / entry["file"])
    on_checkerboard(drawn(images)).save(out / "grid.png")
    if config.per_class:
        pages = class_pages(as_shown(images, render), labels, names)
        for k, (name, page) in enumerate(pages):
            on_checkerboard(page).save(out / f"grid_{k:03d}_{name.replace('/', '_')[:50]}.png")
        save_gif([page for _, page in pages], out / "classes.gif", frame_ms=CLASS_MS, hold_ms=CLASS_MS)
    if config.gif:
        save_gif([drawn(frame) for frame in frames], out / "denoising.gif")
    if config.npy:
        np.save(out / "images.npy", images.permute(0, 2, 3, 1).numpy())
    replace_text(out / "manifest.json", json.dumps(manifest, indent=2) + "\n")


if __name__ == "__main__":
    main()
