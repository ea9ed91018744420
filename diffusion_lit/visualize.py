"""`python -m diffusion_lit.visualize run=<folder>`, or the overrides of a recipe: figures of it."""

import logging
import sys
from functools import partial
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from diffusion_lit.cli.launch import launch
from diffusion_lit.config.compose import compose_configs, resolve_data, sampler_faults
from diffusion_lit.config.constraints import find_conflicts
from diffusion_lit.config.expand import expand_overrides
from diffusion_lit.config.groups import CONF, read_option
from diffusion_lit.config.overrides import read_override
from diffusion_lit.config.schema import FIGURES
from diffusion_lit.runs import checkpoints, run_dir, stored_config
from diffusion_lit.system.errors import Exit, UserError

log = logging.getLogger("diffusion_lit.visualize")
NEEDS_A_RUN = ("panels", "denoising", "samplers", "curves")


def main() -> None:
    recipe: list[DictConfig] = []
    launch("visualize", partial(visualize, recipe), prepare=partial(prepare_recipe, recipe), check=check_visualize)


def prepare_recipe(recipe: list[DictConfig], overrides: list[str], config_dir: str | None) -> list[str]:
    """Return the overrides of this command. Without `run=` the others are a recipe, composed and checked as by `train`.

    Args:
        recipe: the composed recipes are appended to it.

    Raises:
        UserError: exit 2 for a sweep, or keys of a recipe beside `run=`.
    """
    if {"-m", "--multirun", "hydra.mode=MULTIRUN"} & set(sys.argv):
        raise UserError(Exit.CONFIG, "figures are drawn of one run or recipe at a time: leave --multirun out")
    keys, train = set(OmegaConf.load(CONF / "visualize.yaml")), OmegaConf.load(CONF / "train.yaml")
    own = [word for word in overrides if _first(word) in keys]
    others = [word for word in overrides if word not in own]
    if read_override("run", overrides) is None:
        recipe += compose_configs("train", expand_overrides(others, config_dir), config_dir)
        if len(recipe) > 1 and read_override("what", own) != ["losses"]:
            raise UserError(Exit.CONFIG, "several values are several recipes, which only 'what=[losses]' compares")
        return own
    of_recipe = {*train, *[group for entry in train.defaults if entry != "_self_" for group in entry]}
    fixed = [word for word in others if _first(word) in of_recipe]
    if fixed:
        raise UserError(
            Exit.CONFIG, f"{' '.join(fixed)}: the run has its own recipe; leave run= out to look at another"
        )
    return overrides  # others are unknown, and composing reports them


def _first(word: str) -> str:
    return word.partition("=")[0].lstrip("+~").split(".")[0]


def check_visualize(config: DictConfig) -> None:
    """Raise UserError (exit 2 or 4) for what can be found wrong without torch."""
    if config.images_per_class is None:
        raise UserError(Exit.CONFIG, "images_per_class=null: needs a value")
    samplers = samplers_of(config)
    if config.run is None:
        missing = sorted(set(config.what or ()) & set(NEEDS_A_RUN))
        if missing:
            raise UserError(Exit.CONFIG, f"what=[{','.join(missing)}] needs a trained run: add run=...")
        return
    run_config = stored_config.read_model_config(run_dir.require_run_dir(config.run))
    if not config.what or {"panels", "denoising", "samplers"} & set(config.what):
        checkpoints.select_checkpoint(Path(config.run).expanduser(), str(config.checkpoint), warn=lambda message: None)
    values = {f"diffusion.{key}": value for key, value in run_config["diffusion"].items()}
    for name, sampler in samplers.items():
        faults = find_conflicts(values | {f"sampler.{key}": value for key, value in sampler.items()})
        faults += sampler_faults(sampler, run_config["diffusion"], name)
        if faults and (not config.what or "samplers" in config.what):
            raise UserError(Exit.CONFIG, f"samplers: {name}: {faults[0]}; leave it out of samplers=[...]")


def samplers_of(config: DictConfig) -> dict[str, dict]:
    """Return the settings of the samplers to compare by name; the run's own sampler as the run has it."""
    own = stored_config.read_sampling_config(run_dir.require_run_dir(config.run))["sampler"] if config.run else {}
    return {name: own if name == own.get("name") else read_option("sampler", name) for name in config.samplers}


def visualize(recipe: list[DictConfig], config: DictConfig) -> None:
    """Draw the figures of a run, or of the recipes, into a folder."""
    from diffusion_lit.figures import album
    from diffusion_lit.figures.subject import Subject

    wanted = config.what or [name for name in FIGURES if config.run is not None or name not in NEEDS_A_RUN]
    if config.run is None:
        facts = _resolve(recipe[0], with_data="forward" in wanted)
        subject = Subject(facts, config.seed)
        others = album.name_recipes(recipe) if len(recipe) > 1 else {}
        out = Path(config.out or Path("outputs", str(facts["name"]), "figures"))
    else:
        subject, others = album.load_subject(config, log.warning), {}
        out = Path(config.out or subject.run / "figures")
    out = run_dir.make_folder(out)
    samplers = samplers_of(config)
    for path in album.draw_figures(subject, wanted, out, config, samplers, log, others):
        log.info("figure     %s", run_dir.display_path(path))
    left_out = [name for name in FIGURES if name not in wanted]
    if left_out and config.run is None and not config.what:
        log.info("left out   %s: they need a trained run (run=...)", ", ".join(left_out))


def _resolve(recipe: DictConfig, with_data: bool) -> dict:
    """Return the resolved recipe; its data are read only if a figure shows images, so that a schedule needs none."""
    return resolve_data(recipe)[0] if with_data else OmegaConf.to_container(recipe, resolve=True)


if __name__ == "__main__":
    main()
