"""`python -m diffusion_lit.train`: from a command line to a trained model in a run folder."""

import logging
import shutil
import sys
from pathlib import Path

from omegaconf import DictConfig

from diffusion_lit.config import composed, launch, with_data_facts
from diffusion_lit.errors import UserError
from diffusion_lit.runs import checkpoints, folder, resume

log = logging.getLogger("diffusion_lit.train")


def main() -> None:
    launch("train", train, prepare=prepare, check=check)


def prepare(overrides: list[str]) -> list[str]:
    """The bare command is experiment=digits; whoever names data means that data, with the values of train.yaml."""
    overrides = with_stored_overrides(overrides)
    words = {word.partition("=")[0]: word.partition("=")[2] for word in overrides}
    if words.get("data", "digits") != "digits" and "experiment" not in words:
        return ["experiment=none", *overrides]
    return overrides


def with_stored_overrides(overrides: list[str]) -> list[str]:
    """With `resume=`, the command line of that run continued; torch is not needed for any of it."""
    asked = [word.partition("=")[2].strip("'\"") for word in overrides if word.startswith("resume=")]
    if not asked or asked[-1] in ("", "null"):
        return overrides
    rest = [word for word in overrides if not word.startswith("resume=")]
    outputs = Path("outputs")
    if asked[-1] == "auto":
        outputs = outputs / composed("train", rest)[0].name
    run = resume.find_run(asked[-1], outputs)
    if run is None:
        print(f"resume=auto: no run in {outputs} yet, starting a new one")
        return rest
    return resume.continued_overrides(run, rest)


def check(config: DictConfig) -> None:
    """What can be known of data and checkpoints without torch."""
    facts, source = with_data_facts(config)
    source.splits()
    if facts["resume"]:
        resume.check_continuation(Path(facts["resume"]), facts)


def train(config: DictConfig) -> None:
    from hydra.core.hydra_config import HydraConfig

    run = Path(HydraConfig.get().runtime.output_dir)
    overrides = list(HydraConfig.get().overrides.task)
    config, source = with_data_facts(config)
    is_new = not folder.is_run(run)
    lock = folder.Lock(run)
    try:
        result = fit(config, source, run, overrides)
    except UserError:
        if is_new and not checkpoints.steps_of(run):
            shutil.rmtree(run)  # nothing was learned: leave nothing behind
        raise
    finally:
        lock.release()
    if result["status"] != "finished":
        sys.exit(result["exit_code"])


def fit(config: dict, source, run: Path, overrides: list[str]) -> dict:
    """Everything from here on needs torch."""
    from diffusion_lit.build import make_sampler_of
    from diffusion_lit.data.module import ImageDataModule
    from diffusion_lit.training.recorder import Recorder
    from diffusion_lit.training.setup import farewell, finish, make_module, make_trainer, summary

    start = checkpoints.choose(run, warn=log.warning) if config["resume"] else None
    done = folder.read_result(run)
    if start and done.get("status") == "finished" and done["steps"] >= config["max_steps"]:
        log.info("%s is already at step %d of %d; raise max_steps to go on", run, done["steps"], config["max_steps"])
        return done
    data = ImageDataModule(
        source,
        config["data"],
        config["seed"],
        micro_batch_size=config["global_batch_size"] // config["strategy"]["accumulate"],
        accept_changed_data="data" in config["accept"],
    )
    data.setup()
    module = make_module(config)
    recorder = Recorder(run, make_sampler_of(config), config)
    folder.write_start(run, config, overrides)
    log.info(summary(config, data, module, run, start))
    trainer = make_trainer(config, run, recorder)
    trainer.fit(module, data, ckpt_path=start, weights_only=True)
    result = finish(config, data, module, recorder, trainer.global_step)
    folder.write_result(run, result)
    log.info(farewell(result, run))
    return result


if __name__ == "__main__":
    main()
