"""Metrics of generated images: while training, by a sampler of few steps; at the end, class accuracy.

All ranks generate, each a part; the classifier is trained by one process of a machine and read by the others.
"""

from dataclasses import replace

import lightning as L
import torch

from diffusion_lit.config.schema import METRIC_COLUMNS
from diffusion_lit.data.datamodule import ImageDataModule
from diffusion_lit.diffusion.seeds import derive_seed, image_seeds
from diffusion_lit.distributed import consistency
from diffusion_lit.evaluation import metrics
from diffusion_lit.evaluation.features import collect_real_images, make_classifier
from diffusion_lit.sampling.samplers import Sampler
from diffusion_lit.training.callbacks.step import Milestones, StepCallback
from diffusion_lit.training.collective_sampling import continue_on_error, generate_on_all_ranks
from diffusion_lit.training.module import DiffusionModule


def metrics_of(config: dict) -> list[str]:
    """Return the metrics of a run in training: none without `metrics_every`, no class accuracy without classes."""
    requested = config["metrics"] if config["metrics_every"] else []
    return [name for name in requested if name != "class_accuracy" or config["data"]["class_names"]]


def columns_of(config: dict) -> list[str]:
    return [column for name in metrics_of(config) for column in METRIC_COLUMNS[name]]


class SampleMetrics(StepCallback):
    """Measures generated images against the training images every `metrics_every` steps.

    Features are those of a classifier, or pixels where there are no classes. Images, seeds and labels are the same each
    time; the sampler is the previews', with at most `metrics_steps` steps.

    Attributes:
        row: metrics of this step; empty if none was due.
    """

    def __init__(self, config: dict, milestones: Milestones, sampler: Sampler):
        self.config, self.milestones, self.sampler = config, milestones, sampler
        self.metrics, self.columns, self.row = metrics_of(config), columns_of(config), {}

    def on_train_start(self, trainer: L.Trainer, module: DiffusionModule) -> None:
        super().on_train_start(trainer, module)
        if not self.config["metrics_every"]:
            return
        names, steps = self.config["data"]["class_names"], module.diffusion.process.num_train_timesteps
        data = trainer.datamodule
        images = collect_real_images(data.train, data.val, self.config["data"], module.device)
        with consistency.local_rank_zero_first():
            self.reference = metrics.make_reference(images, "classifier" if names else "pixels", names)
        self.sampler = replace(self.sampler, steps=min(self.sampler.steps or steps, self.config["metrics_steps"]))
        self.labels = metrics.labels_in_proportion(self.reference.training.labels, self.config["metrics_images"])
        self.seeds = image_seeds(derive_seed(self.config["seed"], "metrics"), len(self.labels))

    def after_step(self, trainer: L.Trainer, module: DiffusionModule) -> None:
        self.row = {}
        if self.milestones.is_due("metrics_every"):
            with continue_on_error(f"measuring samples of step {self.step}"):
                self.row = self.measure(module)

    def measure(self, module: DiffusionModule) -> dict[str, float]:
        (images,) = generate_on_all_ranks([module.ema], module, self.config, self.sampler, self.labels, self.seeds)
        evidence = metrics.Comparison(self.reference, images, self.labels, floor=False)
        measured = {key: value for name in self.metrics for key, value in metrics.METRICS[name](evidence).items()}
        return {column: measured[column] for column in self.columns}


def measure_class_accuracy(config: dict, data: ImageDataModule, module: DiffusionModule, sampler: Sampler) -> dict:
    """Return the share of generated images of a finished run that are classified as their class.

    `data.classifier_images` images are made; nothing is returned for 0 of them, or without classes.
    """
    num_images = config["data"]["classifier_images"]
    if not (num_images and config["data"]["class_names"]):
        return {}
    images = collect_real_images(data.train, data.val, config["data"], module.device)
    with consistency.local_rank_zero_first():
        trained = make_classifier(images)
    labels = metrics.labels_in_proportion(torch.from_numpy(images.train.labels), num_images)
    seeds = image_seeds(derive_seed(config["seed"], "judge"), num_images)
    (images,) = generate_on_all_ranks([module.ema], module, config, sampler, labels, seeds)
    return metrics.score_class_accuracy(trained, images, labels) | {"judged_images": num_images}
