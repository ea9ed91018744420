"""All figures of a run or a recipe, one after the other."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType

from omegaconf import DictConfig, OmegaConf

from diffusion_lit.config.targets import locate
from diffusion_lit.diffusion.loss import Diffusion
from diffusion_lit.figures import curves, losses, noising, samples, schedule
from diffusion_lit.figures.subject import Subject
from diffusion_lit.runs.build import make_diffusion
from diffusion_lit.runs.load import Trained
from diffusion_lit.runs.stored_config import read_config
from diffusion_lit.sampling.samplers import make_sampler
from diffusion_lit.system.console import progress_bar
from diffusion_lit.system.errors import Exit, UserError

SAMPLED = ("panels", "denoising", "samplers")  # what needs weights


def of_recipe(facts: dict, seed: int) -> Subject:
    """A recipe with the classes of its data, see `diffusion_lit.config.compose.with_data_facts`."""
    return Subject(facts, seed)


def of_run(config: DictConfig, warn: Callable[[str], None]) -> Subject:
    """A run by the configuration of `conf/visualize.yaml`; its weights only where a figure needs them."""
    run = Path(config.run).expanduser()
    if config.what and not set(SAMPLED) & set(config.what):
        return Subject(read_config(run), config.seed, run)
    model = Trained(run, str(config.checkpoint), config.weights, config.device, warn=warn)
    return Subject(model.config, config.seed, run, model)


def compared(recipes: Sequence[DictConfig]) -> dict[str, Diffusion]:
    """Recipes by what tells them apart in `diffusion` and `weighting`: "P2 gamma=1.0 k=1.0", "X0"."""
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
    """Draw what is wanted into a folder and name the files.

    `others`: recipes that `losses` sets beside the subject's.
    Figures whose pictures or metrics are no longer there are left out with a word, unless `config.what` names them.
    """
    made = {name: make_sampler(settings, locate(settings["_target_"])) for name, settings in samplers.items()}
    count = config.images_per_class
    compared = others or {subject.name: subject.diffusion}
    with progress_bar("sampling") as bar:

        def watched(name: str, *used) -> Callable[[], None]:
            task = bar.add_task(name, total=sum(samples.work(subject, sampler, count) for sampler in used))
            return lambda: bar.advance(task)

        figures = {
            "forward": partial(noising.draw_forward, subject, config.columns),
            "panels": partial(noising.draw_panels, subject),
            "schedule": partial(schedule.draw_schedule, subject),
            "losses": partial(losses.draw_losses, compared, f"Loss: {subject.name}"),
            "denoising": lambda out: samples.draw_denoising(
                subject, config.columns, count, out, watched("denoising", subject.model.sampler)
            ),
            "samplers": lambda out: samples.draw_samplers(
                subject, made, count, out, watched("samplers", *made.values())
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
