"""`python -m diffusion_lit.visualize run=<folder>`, or the words of a recipe: figures of it."""

import logging
import sys
from functools import partial
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from diffusion_lit.cli.launch import launch
from diffusion_lit.config.compose import CONF, composed, serving_faults, with_data_facts
from diffusion_lit.config.constraints import conflicts
from diffusion_lit.config.overrides import value_of
from diffusion_lit.config.schema import FIGURES
from diffusion_lit.runs import checkpoints, run_dir, stored_config
from diffusion_lit.system.errors import Exit, UserError
from diffusion_lit.train import expanded

log = logging.getLogger("diffusion_lit.visualize")
NEEDS_A_RUN = ("panels", "denoising", "samplers", "curves")


def main() -> None:
    recipe: list[DictConfig] = []
    launch("visualize", partial(visualize, recipe), prepare=partial(prepare, recipe), check=check)


def prepare(recipe: list[DictConfig], overrides: list[str], config_dir: str | None) -> list[str]:
    """The command's own words. Without `run=` the others are a recipe, composed and checked as `train` does it."""
    if {"-m", "--multirun", "hydra.mode=MULTIRUN"} & set(sys.argv):
        raise UserError(Exit.CONFIG, "figures are drawn of one run or recipe at a time: leave --multirun out")
    keys, train = set(OmegaConf.load(CONF / "visualize.yaml")), OmegaConf.load(CONF / "train.yaml")
    own = [word for word in overrides if _first(word) in keys]
    others = [word for word in overrides if word not in own]
    if value_of("run", overrides) is None:
        recipe += composed("train", expanded(others, config_dir), config_dir)
        if len(recipe) > 1 and value_of("what", own) != ["losses"]:
            raise UserError(Exit.CONFIG, "several values are several recipes, which only 'what=[losses]' compares")
        return own
    of_recipe = {*train, *[group for entry in train.defaults if entry != "_self_" for group in entry]}
    fixed = [word for word in others if _first(word) in of_recipe]
    if fixed:
        raise UserError(
            Exit.CONFIG, f"{' '.join(fixed)}: the run has its own recipe; leave run= out to look at another"
        )
    return overrides  # others are unknown, and told of as that


def _first(word: str) -> str:
    return word.partition("=")[0].lstrip("+~").split(".")[0]


def check(config: DictConfig) -> None:
    """What can be known without torch."""
    if config.images_per_class is None:
        raise UserError(Exit.CONFIG, "images_per_class=null: needs a value")
    samplers = samplers_of(config)
    if config.run is None:
        missing = sorted(set(config.what or ()) & set(NEEDS_A_RUN))
        if missing:
            raise UserError(Exit.CONFIG, f"what=[{','.join(missing)}] needs a trained run: add run=...")
        return
    run_config = stored_config.read_config(run_dir.require_run(config.run))
    if not config.what or {"panels", "denoising", "samplers"} & set(config.what):
        checkpoints.choose(Path(config.run).expanduser(), str(config.checkpoint), warn=lambda message: None)
    values = {f"diffusion.{key}": value for key, value in run_config["diffusion"].items()}
    for name, sampler in samplers.items():
        faults = conflicts(values | {f"sampler.{key}": value for key, value in sampler.items()})
        faults += serving_faults(sampler, run_config["diffusion"], name)
        if faults and (not config.what or "samplers" in config.what):
            raise UserError(Exit.CONFIG, f"samplers: {name}: {faults[0]}; leave it out of samplers=[...]")


def samplers_of(config: DictConfig) -> dict[str, dict]:
    """Those to compare; the run's own as the run has it."""
    own = stored_config.read_sampling(run_dir.require_run(config.run))["sampler"] if config.run else {}
    return {name: own if name == own.get("name") else sampler_yaml(name) for name in config.samplers}


def sampler_yaml(name: str) -> dict:
    path = CONF / "sampler" / f"{name}.yaml"
    if not path.is_file():
        there = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise UserError(Exit.CONFIG, f"samplers: {name}: no such sampler; there are {there}")
    return OmegaConf.to_container(OmegaConf.load(path))


def visualize(recipe: list[DictConfig], config: DictConfig) -> None:
    from diffusion_lit.figures import album

    wanted = config.what or [name for name in FIGURES if config.run is not None or name not in NEEDS_A_RUN]
    if config.run is None:
        facts = _facts(recipe[0], pictures="forward" in wanted)
        subject = album.of_recipe(facts, config.seed)
        others = album.compared(recipe) if len(recipe) > 1 else {}
        out = Path(config.out or Path("outputs", str(facts["name"]), "figures"))
    else:
        subject, others = album.of_run(config, log.warning), {}
        out = Path(config.out or subject.run / "figures")
    out = run_dir.made(out)
    samplers = samplers_of(config)
    for path in album.draw(subject, wanted, out, config, samplers, log, others):
        log.info("figure     %s", run_dir.shown(path))
    left_out = [name for name in FIGURES if name not in wanted]
    if left_out and config.run is None and not config.what:
        log.info("left out   %s: they need a trained run (run=...)", ", ".join(left_out))


def _facts(recipe: DictConfig, pictures: bool) -> dict:
    """The resolved recipe, with the classes of its data if these are needed: who looks at a schedule downloads none."""
    return with_data_facts(recipe)[0] if pictures else OmegaConf.to_container(recipe, resolve=True)


if __name__ == "__main__":
    main()
