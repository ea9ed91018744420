"""What figures are drawn of: a run, or a recipe that was never trained."""

from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffusion_lit.config.compose import build_source
from diffusion_lit.data.decoding import decoding_of
from diffusion_lit.data.sources.folder import Split
from diffusion_lit.data.store import load
from diffusion_lit.diffusion.codecs import Codec
from diffusion_lit.diffusion.loss import Diffusion
from diffusion_lit.imaging.skins import shown
from diffusion_lit.runs.build import make_codec, make_diffusion
from diffusion_lit.runs.load import TrainedModel

ROWS = 10  # of a figure, a class each (the first ones); without classes just rows


@dataclass(frozen=True)
class Subject:
    """A resolved configuration with what was made from it.

    Args:
        config: of the run, or of the recipe.
        seed: of noise and of samples.
        run, model: None for a recipe.
    """

    config: dict
    seed: int
    run: Path | None = None
    model: TrainedModel | None = None

    @property
    def name(self) -> str:
        return f"{self.config['name']}/{self.run.resolve().name}" if self.run else str(self.config["name"])

    @property
    def class_names(self) -> list[str]:
        return self.config["data"]["class_names"]

    @cached_property
    def rows(self) -> list[int]:
        """The label of each row; without classes rows are just rows."""
        return list(range(min(len(self.class_names), ROWS))) if self.class_names else [0] * ROWS

    @property
    def row_names(self) -> list[str]:
        return [self.class_names[label] for label in self.rows] if self.class_names else []

    @cached_property
    def diffusion(self) -> Diffusion:
        return make_diffusion(self.config)

    @property
    def codec(self) -> Codec:
        return make_codec(self.config)

    def shown(self, images: Tensor) -> Tensor:
        return shown(images, self.config["data"].get("render", "none"))

    def originals(self, count: int) -> Tensor:
        """The first `count` training pictures of each row, uint8 (rows, count, C, H, W); only these are decoded.

        Where a class has fewer, they come again. Raises UserError (exit 3) where the pictures are no longer there.
        """
        data = self.config["data"]
        split = _listed(build_source(data).splits()["train"])
        if self.class_names:
            members = [np.flatnonzero(split.labels == label) for label in self.rows]
        else:
            members = np.array_split(np.arange(len(split.labels)), len(self.rows))
        everywhere = np.arange(len(split.labels))
        part = np.concatenate([np.resize(m if len(m) else everywhere, count) for m in members])
        images = torch.from_numpy(load(split.take(part), decoding_of(data), None, "train").images)
        return images.unflatten(0, (len(self.rows), count))


def _listed(split: Split) -> Split:
    """The split itself; of a stream its first pictures."""
    if split.labels is not None:
        return split
    first = list(islice(split.pictures, 512))
    return Split([picture for picture, _ in first], np.array([label for _, label in first], dtype=np.int64))
