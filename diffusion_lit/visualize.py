"""`python -m diffusion_lit.visualize run=<folder>`: draw figures of a run, or of a training configuration."""

import json
import logging
from functools import partial
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from diffusion_lit.cli.launch import launch
from diffusion_lit.config.compose import resolve_data
from diffusion_lit.config.schema import FIGURES
from diffusion_lit.config.secrets import hide_paths
from diffusion_lit.runs import output
from diffusion_lit.runs.figure_request import RUN_FIGURES, check_figures, read_samplers, split_recipe
from diffusion_lit.runs.run_dir import display_path
from diffusion_lit.system.files import write_text_atomically

log = logging.getLogger("diffusion_lit.visualize")


def main() -> None:
    """Run the command."""
    recipes: list[DictConfig] = []
    launch("visualize", partial(visualize, recipes), partial(split_recipe, recipes), check_figures)


def visualize(recipes: list[DictConfig], config: DictConfig) -> None:
    """Draw the figures of a run, or of training configurations, into a folder."""
    from diffusion_lit.figures import album
    from diffusion_lit.figures.subject import Subject

    figures = config.what or [name for name in FIGURES if config.run is not None or name not in RUN_FIGURES]
    if config.run is None:
        facts = resolve_recipe(recipes[0], with_data="forward" in figures)
        subject = Subject(facts, config.seed)
        others = album.name_recipes(recipes) if len(recipes) > 1 else {}
        out = Path(config.out or Path("outputs", str(facts["name"]), "figures"))
    else:
        subject, others = album.load_subject(config, log.warning), {}
        out = Path(config.out or subject.run / "figures")
    request = hide_paths(OmegaConf.to_container(config))
    with output.fill_folder(out, "figures.json", replaces=()) as folder:
        for path in album.draw_figures(subject, figures, folder, config, read_samplers(config), log, others):
            log.info("figure     %s", display_path(out / path.name))
        write_text_atomically(folder / "figures.json", json.dumps(request, indent=2) + "\n")
    left_out = [name for name in FIGURES if name not in figures]
    if left_out and config.run is None and not config.what:
        log.info("left out   %s: they need a trained run (run=...)", ", ".join(left_out))


def resolve_recipe(recipe: DictConfig, with_data: bool) -> dict:
    """Return the resolved configuration. Data is read only if a figure shows images."""
    return resolve_data(recipe)[0] if with_data else OmegaConf.to_container(recipe, resolve=True)


if __name__ == "__main__":
    main()
