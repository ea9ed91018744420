"""The subject of a figure: a run, or a recipe that was never trained."""

from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffusion_lit.config.compose import build_source
from diffusion_lit.data.decoding import decoding_from_config
from diffusion_lit.data.sources.data_source import Split
from diffusion_lit.data.store import load_split
from diffusion_lit.data.value_ranges import resolve_value_range
from diffusion_lit.diffusion.codecs import Codec
from diffusion_lit.diffusion.loss import Diffusion
from diffusion_lit.imaging.rows import choose_rows
from diffusion_lit.imaging.skins import render_images
from diffusion_lit.runs.build import make_codec, make_diffusion
from diffusion_lit.runs.load import TrainedModel
from diffusion_lit.runs.run_images import choose_training_images, load_run_images, read_data_state
from diffusion_lit.sampling.labels import Label

ROWS = 10  # of a figure at most, one for each class
STREAMED = 512  # images of a streamed data set that are read for a figure


@dataclass(frozen=True)
class Subject:
    """A resolved configuration and what is built from it.

    Args:
        config: the configuration of a run or a recipe.
        seed: seed of noise and samples.
        run: the run folder, None for a recipe.
        model: the trained model, None for a recipe or if no figure samples.
        checkpoint: of the run; None: its images are not compared with those of
            training.
    """

    config: dict
    seed: int
    run: Path | None = None
    model: TrainedModel | None = None
    checkpoint: Path | None = None

    @property
    def name(self) -> str:
        """Return `<name>/<run folder>`, or the name of the recipe."""
        return f"{self.config['name']}/{self.run.resolve().name}" if self.run else str(self.config["name"])

    @property
    def has_prompts(self) -> bool:
        """Return whether rows are prompts, to which no training image belongs."""
        return bool(self.config.get("preview_prompts"))

    @cached_property
    def rows(self) -> list[Label]:
        """Return the prompt or the class label of each row; without either, zeros."""
        if self.has_prompts:
            prompts = self.config["preview_prompts"]
            return [prompts[k] for k in choose_rows(len(prompts), ROWS)]
        return choose_rows(len(self.config["data"]["class_names"]), ROWS) or [0] * ROWS

    @property
    def row_names(self) -> list[str]:
        """Return the prompts or the class names of the rows; empty without either."""
        return list(map(str, self.rows)) if self.has_prompts else self.original_names

    @property
    def original_names(self) -> list[str]:
        """Return the class names of the rows of training images; empty without classes, and with prompts."""
        names = self.config["data"]["class_names"]
        return [names[k] for k in self.rows] if names and not self.has_prompts else []

    @cached_property
    def diffusion(self) -> Diffusion:
        """Return the diffusion process and loss of the configuration."""
        return make_diffusion(self.config)

    @property
    def codec(self) -> Codec:
        """Return the codec of the configuration."""
        return make_codec(self.config)

    def render(self, images: Tensor) -> Tensor:
        """Return images as figures show them: skins are rendered as characters with `data.render`."""
        return render_images(images, self.config["data"].get("render", "none"))

    def load_originals(self, count: int) -> Tensor:
        """Return the first training images of each row, uint8 (rows, count, C, H, W). A short class repeats its images.

        Raises:
            UserError: exit 3 if the images no longer exist; exit 4 if they are not
                those of the run.
        """
        data = self.config["data"]
        splits = build_source(data).splits()
        data, split = resolve_value_range(data, splits), _to_list(splits["train"])
        everything = np.arange(len(split.labels))
        if self.original_names:
            members = [np.flatnonzero(split.labels == label) for label in self.rows]
        else:
            members = np.array_split(everything, len(self.rows))
        state = read_data_state(self.checkpoint)
        indices = choose_training_images(splits, split, members, count, state)
        if indices is None:
            load_run_images(self.config["data"], self.checkpoint)  # raises UserError with the fingerprints
            indices = choose_training_images(splits, split, members, count, {})
        images = torch.from_numpy(load_split(split.select(indices), decoding_from_config(data), None, "train").images)
        return images.unflatten(0, (len(self.rows), count))


def _to_list(split: Split) -> Split:
    """Return a split whose images are listed: of a streamed one its first images."""
    if split.labels is not None:
        return split
    first = list(islice(split.images, STREAMED))
    return Split([image for image, _ in first], np.array([label for _, label in first], dtype=np.int64))
