"""All figures of a run or a recipe."""

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType

from omegaconf import DictConfig, OmegaConf

from diffusion_lit.diffusion.loss import Diffusion
from diffusion_lit.figures import curves, losses, noising, samples, schedule
from diffusion_lit.figures.style import save_figure
from diffusion_lit.figures.subject import Subject
from diffusion_lit.runs.build import make_configured_sampler, make_diffusion
from diffusion_lit.runs.checkpoints import list_steps, select_checkpoint
from diffusion_lit.runs.load import TrainedModel
from diffusion_lit.runs.stored_config import read_model_config
from diffusion_lit.system.console import progress_bar
from diffusion_lit.system.errors import Exit, UserError

NEEDS_WEIGHTS = {"panels", "denoising", "samplers"}


def load_subject(config: DictConfig, warn: Callable[[str], None]) -> Subject:
    """Return the run of a configuration of `conf/visualize.yaml`, with its weights if a figure needs them."""
    run, model, checkpoint = Path(config.run).expanduser(), None, None
    if not config.what or NEEDS_WEIGHTS & set(config.what):
        model = TrainedModel.from_run(run, str(config.checkpoint), config.weights, config.device, warn=warn)
        checkpoint = model.checkpoint
    elif "forward" in config.what and list_steps(run):
        checkpoint = select_checkpoint(run, str(config.checkpoint), warn)
    checkpoint = None if "data" in config.accept else checkpoint
    return Subject(model.config if model else read_model_config(run), config.seed, run, model, checkpoint)


def name_recipes(recipes: Sequence[DictConfig]) -> dict[str, Diffusion]:
    """Return recipes by the settings of `diffusion` and `weighting` that differ, such as "P2 gamma=1.0 k=1.0"."""
    configs = [OmegaConf.to_container(recipe, resolve=True) for recipe in recipes]
    items = [{(group, *item) for group in ("weighting", "diffusion") for item in c[group].items()} for c in configs]
    named = {}
    for config, own in zip(configs, items, strict=True):
        differing = sorted(own - set.intersection(*items), key=lambda item: item[1])
        parts = [f"{key}={value}" for _, key, value in differing]
        named[re.sub(r"_target_=[\w.]*\.", "", " ".join(parts))] = make_diffusion(config)
    return named


def draw_figures(
    subject: Subject,
    names: Sequence[str],
    out: Path,
    config: DictConfig,
    samplers: dict[str, dict],
    log: logging.Logger,
    recipes: Mapping[str, Diffusion] = MappingProxyType({}),
) -> Iterator[Path]:
    """Draw figures into a folder and yield their files.

    Figures whose images or metrics no longer exist are skipped with a warning,
    unless `config.what` names them.

    Args:
        subject: the run or recipe.
        names: the figures to draw.
        out: the folder.
        config: the configuration of `conf/visualize.yaml`.
        samplers: settings by name, compared by the figure "samplers".
        log: receives numbers and warnings.
        recipes: recipes compared by the figure "losses". The default is the
            subject's own.
    """
    count, model, models = config.images_per_class, subject.model, {}
    for name, settings in samplers.items() if model else ():
        models[name] = model.with_sampler(make_configured_sampler({"sampler": settings}))
    recipes = recipes or {subject.name: subject.diffusion}
    with progress_bar("sampling") as bar:

        def add_task(name: str, *used: TrainedModel) -> Callable[[], None]:
            steps = sum(one.count_steps(len(subject.rows) * count) for one in used)
            return partial(bar.advance, bar.add_task(name, total=steps))

        def draw(name: str, path: Path) -> list[Path]:
            if name == "forward":
                return noising.draw_forward(subject, config.columns, path)
            if name == "panels":
                return noising.draw_panels(subject, path)
            if name == "schedule":
                title = f"Noise and weights: {subject.name}"
                return [save_figure(schedule.plot_schedule(subject.diffusion, title), path)]
            if name == "losses":
                return [save_figure(losses.plot_losses(recipes, f"Loss: {subject.name}"), path)]
            if name == "denoising":
                return samples.draw_denoising(subject, config.columns, count, path, add_task(name, model))
            if name == "samplers":
                return samples.draw_samplers(subject, models, count, path, add_task(name, *models.values()))
            return curves.draw_curves(subject, path)

        for name in dict.fromkeys(names):
            try:
                yield from draw(name, out / f"{name}.png")
            except UserError as error:
                if error.exit_code != Exit.DATA or config.what:
                    raise
                log.warning("skipped    %s: %s", name, error)
    log_losses(recipes, names, log)


def log_losses(recipes: Mapping[str, Diffusion], names: Sequence[str], log: logging.Logger) -> None:
    """Log the numbers of the figure "losses", and the faults of each recipe if its schedule is drawn."""
    if "losses" in names:
        lines = [line for label, diffusion in recipes.items() for line in losses.describe_loss(diffusion, label)]
        log.info("\n".join(dict.fromkeys(lines)))
    if {"losses", "schedule"} & set(names):
        for label, diffusion in recipes.items():
            for fault in schedule.find_schedule_faults(diffusion):
                log.warning("warning    %s: %s", label, fault)
