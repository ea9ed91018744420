"""`python -m diffusion_lit.evaluate run=<folder>`: how good the images of a trained run are, and by which settings."""

import logging
import secrets
import time
from importlib.util import find_spec
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from diffusion_lit import sample
from diffusion_lit.cli import summary
from diffusion_lit.cli.launch import launch
from diffusion_lit.config.compose import source_of
from diffusion_lit.config.overrides import as_word, value_of
from diffusion_lit.config.schema import METRICS as COLUMNS
from diffusion_lit.config.schema import shown
from diffusion_lit.runs import run_dir, stored_config, sweeps
from diffusion_lit.runs.settings import GUIDANCE
from diffusion_lit.system.errors import Exit, UserError
from diffusion_lit.system.files import replace_text

log = logging.getLogger("diffusion_lit.evaluate")
OF_SAMPLE = dict.fromkeys(("classes", "context", "images_per_class", "per_class", "interpolate", "init", "mask"))


def main() -> None:
    launch("evaluate", evaluate, prepare=of_every_run, check=check, summarise=summarise)


def of_every_run(overrides: list[str], config_dir: str | None) -> list[str]:
    """The words with the run's sampler; `run=<sweep>` becomes a sweep over its finished runs."""
    run = value_of("run", overrides)
    sweep = Path(run).expanduser() if isinstance(run, str) else None
    if not sweep or run_dir.is_run(sweep) or not (jobs := sweeps.jobs_of(sweep)):
        return sample.with_the_runs_sampler(overrides, config_dir)
    runs = [as_word("run", job.folder) for job in jobs if job.status == "finished"]
    if not runs:
        raise UserError(Exit.CHECKPOINT, f"run={run}: no run of this sweep has finished")
    if value_of("set_default", overrides):
        raise UserError(Exit.CONFIG, "set_default: one run at a time")
    rest = [word for word in overrides if not word.startswith("run=")]
    samplers = {tuple(sample.with_the_runs_sampler([*rest, word], config_dir)[:-1]): word for word in runs}
    if len(samplers) > 1:
        told = " and ".join(list(samplers.values())[:2])
        raise UserError(Exit.CONFIG, f"{told} have other samplers: name one for all, such as sampler=ddim")
    out = sweep / "evaluations" / f"sweep-{time.strftime('%Y-%m-%d_%H-%M-%S')}-{secrets.token_hex(2)}"
    every = "run=" + ",".join(word.partition("=")[2] for word in runs)
    return ["hydra.mode=MULTIRUN", as_word("hydra.sweep.dir", out), *next(iter(samplers)), every]


def check(config: DictConfig) -> None:
    """What can be known without torch."""
    sample.check(OmegaConf.merge(OF_SAMPLE, config))  # keys that sample has besides
    data, faults = pictures_to_read(config, stored_config.read_config(Path(config.run).expanduser())["data"]), []
    if config.features == "inception" and not find_spec("torch_fidelity"):
        faults.append('features=inception needs torch-fidelity: pip install "diffusion_lit[inception]"')
    if config.features == "classifier" and not data["class_names"]:
        faults.append("features=classifier: this run has no classes; take features=pixels, or inception (a download)")
    if config.num_images < 20:
        faults.append(f"num_images={config.num_images}: no distance can be measured, take 20 or more")
    if "_target_" not in data:
        why = "a published model does not say where its training pictures are"
        faults.append(f"{why}: add pictures=<a folder, .npy, .npz, .csv, .tsv or .parquet>")
    elif config.pictures is None and data.get("streaming") == "every_epoch":
        why = "data.streaming=every_epoch keeps no training pictures"
        faults.append(f"{why}: add pictures=<a folder, .npy, .npz, .csv or .tsv> with enough of them")
    else:
        source = source_of(data)
        if list(source.class_names) != data["class_names"]:
            faults.append(
                f"pictures={config.pictures}: its classes are {shown(list(source.class_names))}, not the model's"
            )
        if config.reference == "val" and "val" not in source.splits() and not data["val_fraction"]:
            faults.append("reference=val: this run holds nothing out")
    if faults:
        raise UserError(Exit.CONFIG, "\n  ".join(["this run cannot be measured so:", *faults]))


def pictures_to_read(config: DictConfig, data: dict) -> dict:
    """The `data` group of the run, or of `pictures` with the run's way to decode them."""
    if config.pictures is None:
        return data
    words = {"sources": [config.pictures], "labels": "auto" if data["class_names"] else "none"}
    plain = {"flip": 0.0, "val_fraction": 0.05, "random_crop": 0, "cache_dir": None}
    return plain | data | {"_target_": "diffusion_lit.data.sources.concat.Concat"} | words


def evaluate(config: DictConfig) -> float:
    """One evaluation. Returns its value of `metric`, for a sweep."""
    from diffusion_lit.data.store import load_splits
    from diffusion_lit.evaluation.features import pictures_of
    from diffusion_lit.evaluation.metrics import Evidence, labels_like, reference_of
    from diffusion_lit.runs.load import as_asked

    if config.shards:
        config = sample.one_of_several(config)
    out, model = out_folder(config), as_asked(config, log.warning)
    data, names = pictures_to_read(config, model.config["data"]), model.class_names
    pictures = pictures_of(*load_splits(source_of(data), data), data, model.device)
    features = config.features or ("classifier" if names else "pixels")
    reference = reference_of(pictures, features, names, config.reference_images)
    labels = labels_like(reference.training.labels, config.num_images)
    if config.shards:
        return in_shards(config, model, reference, pictures, labels)
    images, nfe, seconds = generated(model, labels, config.seed)
    evidence = Evidence(reference, images, labels, config.reference)
    result = measured(config, model, evidence, pictures.train.fingerprint, {"nfe": nfe, "seconds": seconds})
    write(out, result, evidence, config)
    return sweeps.objective(result, config.metric)


def in_shards(config: DictConfig, model, reference, pictures, labels: list[int]) -> float | None:
    """The same by every process that is started with these words: they share images and features out, and the first
    that finds all there measures. Images stay on the disk."""
    from diffusion_lit.diffusion.seeds import image_seeds
    from diffusion_lit.evaluation.metrics import Evidence
    from diffusion_lit.evaluation.results import lines
    from diffusion_lit.runs import shards, shared_work
    from diffusion_lit.runs.load import settings_of

    out, here = Path(config.out).expanduser(), []
    asked = shards.Asked(labels, image_seeds(config.seed, len(labels)), config.shards, settings_of(model, config))
    made = shards.generate(model, asked, out)
    images = shards.read(out)
    shards.share_features(reference.extractor, images, out)
    words = {key: config[key] for key in ("metrics", "features", "pictures", "reference", "reference_images")}
    words |= {part: store and store.fingerprint for part, store in (("train", pictures.train), ("val", pictures.val))}
    words = OmegaConf.to_container(OmegaConf.create(words | {"digest": reference.extractor.digest}))

    def done(_: int) -> bool:
        return run_dir.read_result(out).get("asked") == words

    def make(_: int) -> None:
        found = shards.features(reference.extractor, images, out)
        evidence = Evidence(reference, images, labels, config.reference, features=found)
        told = {"nfe": made["nfe"], "seconds": made["seconds"], "images": made["blake2b"], "asked": words}
        write(out, measured(config, model, evidence, pictures.train.fingerprint, told), evidence, config)
        here.append(True)

    shared_work.share(out / ".lock", 1, done, make)
    result = run_dir.read_result(out)
    if not here:
        log.info("\n".join(lines(result, result.get("per_class", []))))
        log.info("measured   %s, by another process", run_dir.shown(out / "result.json"))
        if config.set_default:
            keep_as_default(Path(config.run).expanduser(), result["settings"], f"set by {out.name}")
    return sweeps.objective(result, config.metric)


def measured(config: DictConfig, model, evidence, data: str, told: dict) -> dict:
    """result.json: what is `told` of the images, the numbers, and the settings that they are of; `data` is the
    fingerprint of the training pictures."""
    from diffusion_lit.evaluation.metrics import METRICS, per_class
    from diffusion_lit.runs.load import settings_of

    reference, run = evidence.reference, Path(config.run).expanduser()
    result = {"status": "finished", "exit_code": 0, "run": str(run_dir.shown(run)), "trained": sweeps.words_of(run)}
    result |= told | {"num_images": len(evidence.generated)}
    for name in wanted(config, reference.class_names):
        result |= METRICS[name](evidence)
    if reference.class_names:
        result["per_class"] = per_class(evidence)
    extractor, real = reference.extractor, evidence.real
    result["settings"] = {
        "features": {"name": extractor.name, "digest": extractor.digest, **extractor.facts},
        "reference": {"split": config.reference, "images": len(real), "data": data},
        **settings_of(model, config),
    }
    return result


def wanted(config: DictConfig, class_names: list[str]) -> list[str]:
    return [name for name in config.metrics if class_names or name != "class_accuracy"]


def generated(model, labels: list[int], seed: int):
    """The images, network evaluations for each of them, and seconds."""
    from diffusion_lit.diffusion.seeds import image_seeds
    from diffusion_lit.runs.load import counted
    from diffusion_lit.system.console import progress_bar

    with progress_bar("sampling") as bar:
        batches = -(-len(labels) // model.sampler.batch_size)
        task = bar.add_task("", total=len(model.sampler.build(model.diffusion.table).timesteps) * batches)
        return counted(model, labels, image_seeds(seed, len(labels)), lambda first, k, x: bar.advance(task))


def out_folder(config: DictConfig) -> Path:
    """A new folder; of a sweep the job's."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    job = HydraConfig.get()
    if job.mode == RunMode.MULTIRUN:
        if config.shards:
            raise UserError(Exit.CONFIG, f"shards={config.shards} and --multirun: one evaluation at a time")
        out = Path(job.runtime.output_dir)
        run_dir.add_command(out, list(job.overrides.task), "evaluate")
        return out
    if config.shards:
        return Path(config.out).expanduser()
    return sample.new_folder(config.out, Path(config.run).expanduser(), "evaluations")


def write(out: Path, result: dict, evidence, config: DictConfig) -> None:
    """The panel, the words, result.json last; and what is kept outside of the folder."""
    from diffusion_lit.evaluation.results import lines, panel
    from diffusion_lit.imaging.grids import on_checkerboard

    if "memorisation" in config.metrics:
        on_checkerboard(panel(evidence)).save(out / "neighbours.png")
        log.info("neighbours %s", run_dir.shown(out / "neighbours.png"))
    run_dir.write_result(out, result)
    alone = not (out / "command.txt").exists()  # else the job of a sweep; the best of all is found when it ends
    log.info("\n".join(lines(result, result.get("per_class", []) if alone else [])))
    log.info("written    %s", run_dir.shown(out / "result.json"))
    if not alone:
        return
    run = Path(config.run).expanduser()
    to_logger(run, result)
    if config.set_default:
        keep_as_default(run, result["settings"], f"set by {out.name}")


def keep_as_default(run: Path, settings: dict, why: str) -> None:
    """sampling.yaml of the run, which `sample` and all that loads the run take from now on."""
    best = {key: settings[key] for key in ("sampler", *GUIDANCE) if settings[key] is not None}
    replace_text(run / "sampling.yaml", f"# {why}; remove this file to go back\n{OmegaConf.to_yaml(best)}")
    summary.show(f"default    {run_dir.shown(run / 'sampling.yaml')}: {why}")


def to_logger(run: Path, result: dict) -> None:
    """The numbers into the run's summary in W&B, if it is there, as a continuation with its id: of a run that is
    offline a second folder, and `wandb sync` brings them together."""
    from diffusion_lit.training.loggers.base import make_logger

    config = stored_config.read_config(run)
    if not (run / "wandb" / "run_id").exists():
        return
    try:
        lock = run_dir.Lock(run)
    except (UserError, OSError) as error:
        log.warning("W&B        is not told: %s", error)
        return
    logger = make_logger(config["logger"])
    logger.start(run, config, 0)
    logger.summary({f"evaluation/{key}": value for key, value in result.items() if isinstance(value, int | float)})
    logger.finish(0)
    lock.release()


def summarise(sweep: Path, config: DictConfig) -> None:
    """After a sweep: results.csv, the table, of one run pareto.png and with `set_default` its best settings into it;
    of several runs means over seeds and their picture."""
    from diffusion_lit.figures import pareto

    jobs = sweeps.write_results(sweep)
    keys, columns = sweeps.swept(jobs), [column for name in config.metrics for column in COLUMNS[name]]
    measured = [name for name in dict.fromkeys([config.metric, *columns]) if name in sweeps.metrics(jobs)]
    if not measured:
        summary.show(*summary.failures(jobs, keys))
        return
    metric, *others = measured
    if len({job.result.get("run") for job in jobs} - {None}) > 1:
        summary.summarise(sweep, metric, others)
        return
    summary.show(*summary.failures(jobs, keys), pareto.table(jobs, keys, metric, others))
    summary.show(f"picture    {run_dir.shown(pareto.draw(jobs, keys, metric, sweep / 'pareto.png'))}")
    summary.show(f"rows       {run_dir.shown(sweep / 'results.csv')}")
    if config.set_default:
        best = sweeps.groups_of(jobs, [key for key in keys if key != "seed"], metric)[0]
        why = f"best {metric} ({best.mean:.4g}) of {sweep.name}"
        keep_as_default(Path(config.run).expanduser(), run_dir.read_result(best.jobs[0].folder)["settings"], why)


if __name__ == "__main__":
    main()
