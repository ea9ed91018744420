"""All figures of a run or a recipe, one after the other."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType

from omegaconf import DictConfig, OmegaConf

from diffusion_lit.diffusion.loss import Diffusion
from diffusion_lit.figures import curves, losses, noising, samples, schedule
from diffusion_lit.figures.style import save
from diffusion_lit.figures.subject import Subject
from diffusion_lit.runs.build import make_configured_sampler, make_diffusion
from diffusion_lit.runs.load import TrainedModel
from diffusion_lit.runs.stored_config import read_model_config
from diffusion_lit.system.console import progress_bar
from diffusion_lit.system.errors import Exit, UserError

SAMPLED = ("panels", "denoising", "samplers")  # what needs weights


def of_run(config: DictConfig, warn: Callable[[str], None]) -> Subject:
    """Return a run by the configuration of `conf/visualize.yaml`, with its weights if a figure needs them."""
    run = Path(config.run).expanduser()
    if config.what and not set(SAMPLED) & set(config.what):
        return Subject(read_model_config(run), config.seed, run)
    model = TrainedModel.from_run(run, str(config.checkpoint), config.weights, config.device, warn=warn)
    return Subject(model.config, config.seed, run, model)


def compared(recipes: Sequence[DictConfig]) -> dict[str, Diffusion]:
    """Return recipes by what differs in their `diffusion` and `weighting`: "P2 gamma=1.0 k=1.0", "X0"."""
    settings = [OmegaConf.to_container(recipe, resolve=True) for recipe in recipes]
    keys = [{(group, *item) for group in ("weighting", "diffusion") for item in one[group].items()} for one in settings]
    named = {}
    for one, own in zip(settings, keys, strict=True):
        apart = sorted(own - set.intersection(*keys), key=lambda item: item[1])
        words = [str(value).rpartition(".")[2] if key == "_target_" else f"{key}={value}" for _, key, value in apart]
        named[" ".join(words)] = make_diffusion(one)
    return named


def draw(
    subject: Subject,
    wanted: Sequence[str],
    out: Path,
    config: DictConfig,
    samplers: dict[str, dict],
    log: logging.Logger,
    others: Mapping[str, Diffusion] = MappingProxyType({}),
) -> Iterator[Path]:
    """Draw the wanted figures into a folder and yield their files.

    Figures whose images or metrics are no longer there are skipped with a warning, unless `config.what` names them.

    Args:
        samplers: settings by name, compared by the figure "samplers".
        others: recipes compared by the figure "losses", instead of the subject's.
    """
    count, model, models = config.images_per_class, subject.model, {}
    if model:
        make = make_configured_sampler
        models = {name: model.replaced(make({"sampler": settings})) for name, settings in samplers.items()}
    compared = others or {subject.name: subject.diffusion}
    with progress_bar("sampling") as bar:

        def watched(name: str, *used: TrainedModel) -> Callable[[], None]:
            task = bar.add_task(name, total=sum(one.count_steps(len(subject.rows) * count) for one in used))
            return lambda: bar.advance(task)

        figures = {
            "forward": partial(noising.draw_forward, subject, config.columns),
            "panels": partial(noising.draw_panels, subject),
            "schedule": lambda out: [
                save(schedule.figure_of(subject.diffusion, f"Noise and weights: {subject.name}"), out)
            ],
            "losses": lambda out: [save(losses.figure_of(compared, f"Loss: {subject.name}"), out)],
            "denoising": lambda out: samples.draw_denoising(
                subject, config.columns, count, out, watched("denoising", model)
            ),
            "samplers": lambda out: samples.draw_samplers(
                subject, models, count, out, watched("samplers", *models.values())
            ),
            "curves": partial(curves.draw_curves, subject),
        }
        for name in dict.fromkeys(wanted):
            try:
                yield from figures[name](out / f"{name}.png")
            except UserError as error:
                if error.exit_code != Exit.DATA or config.what:
                    raise
                log.warning("left out   %s: %s", name, error)
            if name == "losses":
                lines = [line for label, diffusion in compared.items() for line in losses.told(diffusion, label)]
                log.info("\n".join(dict.fromkeys(lines)))
                for label, diffusion in compared.items() if "schedule" not in wanted else ():
                    for fault in schedule.incoherent(diffusion):
                        log.warning("warning    %s: %s", label, fault)
            if name == "schedule":
                for fault in schedule.incoherent(subject.diffusion):
                    log.warning("warning    %s", fault)
