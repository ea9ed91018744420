"""Evaluate a trained run: generate images, compare them with real ones, return the content of result.json."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from diffusion_lit.config.compose import build_source
from diffusion_lit.config.metric_columns import NEEDS_CLASSES
from diffusion_lit.config.secrets import hide_paths
from diffusion_lit.data.captions import require_captions
from diffusion_lit.data.store import load_splits
from diffusion_lit.diffusion.seeds import image_seeds
from diffusion_lit.evaluation import metrics
from diffusion_lit.evaluation.features import FEATURE_EXTRACTORS, FROM_IMAGES, RealImages, collect_real_images
from diffusion_lit.evaluation.image_sets import Reference, compute_statistics, describe_resize, make_reference
from diffusion_lit.evaluation.reference_statistics import check_statistics, load_statistics, save_statistics
from diffusion_lit.runs import run_dir, shards, shared_work, sweeps
from diffusion_lit.runs.evaluate_request import has_reference_images, make_reference_config
from diffusion_lit.runs.fast_sampling import speed_up
from diffusion_lit.runs.load import TrainedModel, describe_sampling, generate_with_progress
from diffusion_lit.runs.run_images import load_run_images
from diffusion_lit.sampling.labels import Label
from diffusion_lit.system.console import announce
from diffusion_lit.system.errors import ConfigError, DataError

log = logging.getLogger("diffusion_lit.evaluate")
WriteResult = Callable[[dict, metrics.Comparison], None]


class EvaluationTask(NamedTuple):
    """A model, the real images it is compared with, and the labels of the images to generate.

    Args:
        config: of the command.
        model: to measure.
        real: images.
        reference: of them.
        labels: classes of the images to generate, of prompts those of their images; 0 without classes.
        requests: what the network gets for them: the same, or prompts.
    """

    config: DictConfig
    model: TrainedModel
    real: RealImages
    reference: Reference
    labels: list[int]
    requests: Sequence[Label]


def load_evaluation_task(config: DictConfig, model: TrainedModel) -> EvaluationTask:
    """Load the real images of a run and extract their features."""
    data, has_prompts = make_reference_config(config, model.config), bool(model.config.get("text_encoder"))
    names = model.class_names
    statistics = config.reference_statistics and load_statistics(Path(config.reference_statistics).expanduser())
    real = load_real_images(config, data, model)
    is_classifier_needed = bool(names) and set(config.metrics) != {"colors"}  # which are compared without features
    features = config.features or (statistics and statistics.features)
    features = features or ("classifier" if is_classifier_needed else "pixels")
    if features not in FEATURE_EXTRACTORS:
        where, known = f"reference_statistics={config.reference_statistics}", ", ".join(FEATURE_EXTRACTORS)
        raise ConfigError(f"{where}: of features {features}, which are none of {known}. Choose another file")
    if real.train is None and features in FROM_IMAGES:
        fault = f"features={features} are made of training images, which this model does not have"
        raise ConfigError(f"{fault}. Add reference_data=, or features=inception")
    with announce(f"features ({features}) of the real images"):
        has_accuracy = "class_accuracy" in config.metrics
        reference = make_reference(real, features, names, config.reference_images, has_accuracy, statistics)
    resize = describe_resize(reference.extractor, *model.codec.image_shape[1:], data.get("resample"))
    if statistics:
        blank = torch.zeros(1, *model.codec.image_shape, dtype=torch.uint8)
        size = reference.extractor(blank).shape[1]
        check_statistics(statistics, features, reference.extractor.digest, resize, size)
    if config.save_statistics:
        write_statistics(config, real, reference, resize)
    labels = np.arange(max(1, len(names))) if real.train is None else np.array(real.train.labels)
    if reference.training:
        labels = reference.training.labels.numpy()
    labels = requests = metrics.labels_in_proportion(torch.from_numpy(labels), config.num_images)
    if has_prompts:
        require_captions(real.train.captions)
        labels, requests = metrics.draw_prompts(real.train, config.num_images)
    return EvaluationTask(config, speed_up(model, config, len(labels)), real, reference, labels, requests)


def load_real_images(config: DictConfig, data: dict, model: TrainedModel) -> RealImages:
    """Return the images of `reference_data`, else those of the run; none where only statistics are compared with."""
    if not has_reference_images(config, data):
        return RealImages(None, None, len(model.class_names), False, data.get("resample"), model.device)
    if config.reference_data is None:
        images = load_run_images(data, model.checkpoint, config.accept)
    else:
        images = load_splits(build_source(data), data)
    return collect_real_images(*images, data, model.device)


def write_statistics(config: DictConfig, real: RealImages, reference: Reference, resize: str) -> None:
    """Write the statistics of the real images to the file of `save_statistics`."""
    path, is_train = Path(config.save_statistics).expanduser(), config.reference_split == "train"
    images, store = reference.compared(config.reference_split), real.train if is_train else real.val
    if len(images) < metrics.MIN_IMAGES:
        raise DataError(f"save_statistics={path}: {len(images)} images are too few")
    save_statistics(compute_statistics(images, reference.extractor, resize, store.fingerprint), path)
    log.info("statistics %s, %s images, %s", path, f"{len(images):,}", reference.extractor.name)


def measure(task: EvaluationTask, write: WriteResult) -> dict:
    """Generate the images in this process, compute the metrics, `write` the result and return it."""
    seeds = image_seeds(task.config.seed, len(task.labels))
    images, nfe, seconds = generate_with_progress(task.model, task.requests, seeds)
    with announce("features of the generated images"):
        comparison = metrics.Comparison(task.reference, images, task.labels, task.config.reference_split)
    result = make_result(task, comparison, {"nfe": nfe, "seconds": seconds})
    write(result, comparison)
    return result


def measure_in_shards(task: EvaluationTask, out: Path, write: WriteResult) -> tuple[dict, bool]:
    """Do the same together with every process that is started with the same overrides.

    Images and features are shared through `out`, where they stay. The first process
    that has all of them computes the metrics and writes the result.

    Returns:
        The result, and whether this process wrote it.
    """
    config, reference, labels = task.config, task.reference, task.labels
    seeds = image_seeds(config.seed, len(labels))
    request = shards.ShardRequest(task.requests, seeds, config.shards, describe_sampling(task.model, config))
    manifest, has_written = shards.generate_in_shards(task.model, request, out), []
    images = shards.open_sharded_images(out)
    shards.extract_features_in_shards(reference.extractor, images, out)
    keys = ("metrics", "features", "reference_data", "reference_split", "reference_images")
    identity = OmegaConf.to_container(OmegaConf.create({key: config[key] for key in keys}))
    identity = hide_paths(identity) | {"digest": reference.extractor.digest}
    identity |= {
        name: store and store.fingerprint for name, store in (("train", task.real.train), ("val", task.real.val))
    }
    identity |= {"statistics": reference.statistics and reference.statistics.describe()}

    def is_measured(_: int) -> bool:
        return run_dir.read_result(out).get("request") == identity

    def compute(_: int) -> None:
        features = shards.read_sharded_features(reference.extractor, images, out)
        comparison = metrics.Comparison(reference, images, labels, config.reference_split, features=features)
        facts = {"nfe": manifest["nfe"], "seconds": manifest["seconds"], "images": manifest["blake2b"]}
        write(make_result(task, comparison, facts | {"request": identity}), comparison)
        has_written.append(True)

    shared_work.share_work(out / ".lock", 1, is_measured, compute)
    return run_dir.read_result(out), bool(has_written)


def make_result(task: EvaluationTask, comparison: metrics.Comparison, facts: dict) -> dict:
    """Return the content of result.json: the metrics, and the settings they depend on.

    Args:
        task: what was evaluated.
        comparison: generated and real images with their features.
        facts: of the generated images, such as `nfe` and `seconds`.
    """
    reference, run = comparison.reference, Path(task.config.run).expanduser()
    result = {"status": "finished", "exit_code": 0, "run": run_dir.name_run(run)}
    result |= (
        {"train_overrides": hide_paths(sweeps.read_job_overrides(run))}
        | facts
        | {"num_images": len(comparison.generated)}
    )
    for name in task.config.metrics:
        if reference.class_names or name not in NEEDS_CLASSES:
            with announce(f"measuring {name}"):
                result |= metrics.compute_metric(name, comparison)
    if reference.class_names and {"class_accuracy", "kid"} & set(task.config.metrics):
        result["per_class"] = metrics.compute_per_class(comparison, task.config.metrics)
    extractor = reference.extractor
    if reference.statistics:
        compared = {"split": None, **reference.statistics.describe()}
    else:
        data = task.real.train.fingerprint
        compared = {"split": task.config.reference_split, "images": len(comparison.real), "data": data}
    result["settings"] = {
        "features": {"name": extractor.name, "digest": extractor.digest, **extractor.facts},
        "reference": compared,
        **describe_sampling(task.model, task.config),
    }
    return result
