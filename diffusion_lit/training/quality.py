"""Metrics of samples: while training, of the average's by a sampler of few steps; at the end, of their classes.

All ranks draw, each a part; the classifier is trained by one process of a machine and read by the others.
"""

from dataclasses import replace

import torch

from diffusion_lit.config.schema import METRICS as COLUMNS
from diffusion_lit.data.datamodule import ImageDataModule
from diffusion_lit.diffusion.seeds import fold, image_seeds
from diffusion_lit.distributed import consistency
from diffusion_lit.evaluation.features import classifier, pictures_of
from diffusion_lit.evaluation.metrics import METRICS, Evidence, accuracy, labels_like, reference_of
from diffusion_lit.sampling.samplers import Sampler
from diffusion_lit.training.module import DiffusionModule
from diffusion_lit.training.shared import samples


def metrics_of(config: dict) -> list[str]:
    """Those that a run has while it trains: none without `metrics_every`, no class accuracy without classes."""
    asked = config["metrics"] if config["metrics_every"] else []
    return [name for name in asked if name != "class_accuracy" or config["data"]["class_names"]]


def columns_of(config: dict) -> list[str]:
    return [column for name in metrics_of(config) for column in COLUMNS[name]]


class Quality:
    """The metrics of a run against its training pictures, features of a classifier, without classes of pixels.

    Images, seeds and labels are the same each time; the sampler is the previews', with at most `metrics_steps` steps.
    """

    def __init__(self, config: dict, data: ImageDataModule, module: DiffusionModule, sampler: Sampler):
        names, steps = config["data"]["class_names"], module.diffusion.table.num_train_timesteps
        pictures = pictures_of(data.train, data.val, config["data"], module.device)
        with consistency.local_rank_zero_first():
            self.reference = reference_of(pictures, "classifier" if names else "pixels", names)
        self.sampler = replace(sampler, steps=min(sampler.steps or steps, config["metrics_steps"]))
        self.labels = labels_like(self.reference.training.labels, config["metrics_images"])
        self.seeds = image_seeds(fold(config["seed"], "metrics"), len(self.labels))
        self.metrics, self.columns = metrics_of(config), columns_of(config)

    def measure(self, module: DiffusionModule) -> dict[str, float]:
        (images,) = samples([module.ema], module, self.sampler, self.labels, self.seeds)
        evidence = Evidence(self.reference, images, self.labels, floor=False)
        found = {key: value for name in self.metrics for key, value in METRICS[name](evidence).items()}
        return {column: found[column] for column in self.columns}


def judge(config: dict, data: ImageDataModule, module: DiffusionModule, sampler: Sampler) -> dict:
    """How many samples of a finished run are the class they were asked to be, by `data.judge_images`."""
    num_images = config["data"]["judge_images"]
    if not (num_images and config["data"]["class_names"]):
        return {}
    pictures = pictures_of(data.train, data.val, config["data"], module.device)
    with consistency.local_rank_zero_first():
        found = classifier(pictures)
    labels = labels_like(torch.from_numpy(pictures.train.labels), num_images)
    (images,) = samples([module.ema], module, sampler, labels, image_seeds(fold(config["seed"], "judge"), num_images))
    return accuracy(found, images, labels) | {"judged_images": num_images}
