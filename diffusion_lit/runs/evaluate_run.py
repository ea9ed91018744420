"""Measure a trained run: generate images, compare them with real ones, return what result.json holds."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig, OmegaConf

from diffusion_lit.config.compose import build_source
from diffusion_lit.data.store import load_splits
from diffusion_lit.diffusion.seeds import image_seeds
from diffusion_lit.evaluation.features import Pictures, pictures_of
from diffusion_lit.evaluation.metrics import METRICS, Evidence, Reference, labels_like, per_class, reference_of
from diffusion_lit.runs import run_dir, shards, shared_work, sweeps
from diffusion_lit.runs.evaluate_request import reference_data_config
from diffusion_lit.runs.load import TrainedModel, generate_with_progress, sampling_settings

log = logging.getLogger("diffusion_lit.evaluate")
Write = Callable[[dict, Evidence], None]


class EvaluationTask(NamedTuple):
    """A model, the real images it is compared with, and the labels of the images to generate."""

    config: DictConfig
    model: TrainedModel
    pictures: Pictures
    reference: Reference
    labels: list[int]


def load_evaluation_task(config: DictConfig, model: TrainedModel) -> EvaluationTask:
    """Load the reference of a run and extract its features."""
    data, names = reference_data_config(config, model.config["data"]), model.class_names
    pictures = pictures_of(*load_splits(build_source(data), data), data, model.device)
    features = config.features or ("classifier" if names else "pixels")
    reference = reference_of(pictures, features, names, config.reference_images)
    return EvaluationTask(config, model, pictures, reference, labels_like(reference.training.labels, config.num_images))


def measure(task: EvaluationTask, write: Write) -> dict:
    """Generate the images in this process, measure them, `write` the result and return it."""
    seeds = image_seeds(task.config.seed, len(task.labels))
    images, nfe, seconds = generate_with_progress(task.model, task.labels, seeds)
    evidence = Evidence(task.reference, images, task.labels, task.config.reference)
    result = make_result(task, evidence, {"nfe": nfe, "seconds": seconds})
    write(result, evidence)
    return result


def measure_in_shards(task: EvaluationTask, out: Path, write: Write) -> tuple[dict, bool]:
    """Do the same with every process that is started with the same overrides.

    They share images and features, which stay on the disk. The first that finds all of them measures and writes.

    Returns:
        The result, and whether this process wrote it.
    """
    config, model, pictures, reference, labels = task
    request = shards.ShardRequest(
        labels, image_seeds(config.seed, len(labels)), config.shards, sampling_settings(model, config)
    )
    made, here = shards.generate_in_shards(model, request, out), []
    images = shards.open_sharded_images(out)
    shards.extract_features_in_shards(reference.extractor, images, out)
    key = {name: config[name] for name in ("metrics", "features", "pictures", "reference", "reference_images")}
    key |= {part: store and store.fingerprint for part, store in (("train", pictures.train), ("val", pictures.val))}
    key = OmegaConf.to_container(OmegaConf.create(key | {"digest": reference.extractor.digest}))

    def is_measured(_: int) -> bool:
        return run_dir.read_result(out).get("request") == key

    def make(_: int) -> None:
        features = shards.read_sharded_features(reference.extractor, images, out)
        evidence = Evidence(reference, images, labels, config.reference, features=features)
        facts = {"nfe": made["nfe"], "seconds": made["seconds"], "images": made["blake2b"], "request": key}
        write(make_result(task, evidence, facts), evidence)
        here.append(True)

    shared_work.share_work(out / ".lock", 1, is_measured, make)
    return run_dir.read_result(out), bool(here)


def make_result(task: EvaluationTask, evidence: Evidence, facts: dict) -> dict:
    """Return what result.json holds: `facts` of the images, the metrics, and the settings they depend on."""
    reference, run = evidence.reference, Path(task.config.run).expanduser()
    result = {"status": "finished", "exit_code": 0, "run": str(run_dir.display_path(run))}
    result |= {"trained": sweeps.read_job_overrides(run)}
    result |= facts | {"num_images": len(evidence.generated)}
    for name in task.config.metrics:
        if reference.class_names or name != "class_accuracy":
            result |= METRICS[name](evidence)
    if reference.class_names:
        result["per_class"] = per_class(evidence)
    extractor, data = reference.extractor, task.pictures.train.fingerprint
    result["settings"] = {
        "features": {"name": extractor.name, "digest": extractor.digest, **extractor.facts},
        "reference": {"split": task.config.reference, "images": len(evidence.real), "data": data},
        **sampling_settings(task.model, task.config),
    }
    return result
