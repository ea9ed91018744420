"""What the page of `diffusion_lit.app` does, without the page: from what a visitor asks to pictures."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

from diffusion_lit.config.compose import CONF
from diffusion_lit.config.constraints import conflicts
from diffusion_lit.diffusion.seeds import image_seeds
from diffusion_lit.evaluation.memorization import nearest
from diffusion_lit.evaluation.metrics import PIXELS, small
from diffusion_lit.imaging.grids import beside, grid, on_checkerboard
from diffusion_lit.imaging.skins import shown
from diffusion_lit.runs.build import make_sampler_of
from diffusion_lit.runs.load import Trained
from diffusion_lit.sampling.labels import number_of
from diffusion_lit.sampling.previews import Film

IMAGES, STEPS, SCALE = 16, 250, 20.0  # that a visitor may ask for at most
COLUMNS, NEAREST = 4, 4
ALL = "all classes"
SIDE = 512  # px that a picture has at least, by whole factors


@dataclass(frozen=True)
class Asked:
    """One request, as it came from a browser: nothing in it is trusted."""

    label: str
    count: int
    seed: int
    sampler: str
    steps: int
    guidance_scale: float


@dataclass(frozen=True)
class Made:
    """Images uint8 (N, C, H, W); pictures of all of them on their way from noise, the last the result."""

    images: Tensor
    frames: list[Image.Image]


class Studio:
    """A trained model and what can be asked of it.

    Args:
        training: uint8 (M, C, H, W), where nearest images are looked for; None: nowhere.
    """

    def __init__(self, model: Trained, training: Tensor | None = None):
        self.model, self.training = model, training
        self.vectors = None if training is None else small(training, PIXELS)
        process = model.config["diffusion"].get("process", "discrete")
        files = {file.stem: OmegaConf.load(file) for file in sorted(CONF.glob("sampler/*.yaml"))}
        there = {name: OmegaConf.to_container(found) for name, found in files.items() if process in found.serves}
        self.samplers = there | {model.config["sampler"]["name"]: model.config["sampler"]}

    @property
    def classes(self) -> list[str]:
        names = self.model.class_names
        return [ALL, *names] if names else []

    @property
    def guided(self) -> bool:
        """Whether the network was trained without its label too."""
        return bool(self.model.class_names and self.model.config["label_dropout"])

    @property
    def most_steps(self) -> int:
        return min(STEPS, self.model.diffusion.table.num_train_timesteps)

    def make(self, asked: Asked, on_step: Callable[[int, int], None] = lambda done, steps: None) -> Made:
        """
        Args:
            on_step: is told evaluations of the network that are done, and how many there are.
        Raises:
            ValueError: for what cannot be made, in words for a visitor.
        """
        labels, model = self._labels(asked), self._told(asked)
        steps = len(model.sampler.build(model.diffusion.table).timesteps)
        film = Film(range(asked.count), steps, model.shape)

        def step(first: int, k: int, x: Tensor) -> None:
            film(first, k, x)
            on_step(k + 1, steps)

        images = model.generate(labels, image_seeds(asked.seed, asked.count), step)
        return Made(images, [self._picture(frame) for frame in [*film.frames[:-1], images]])

    def neighbours(self, images: Tensor) -> Image.Image | None:
        """Each image, and behind it the training images with the nearest pixels."""
        if self.vectors is None:
            return None
        found = nearest(small(images, PIXELS), self.vectors).index[:, :NEAREST]
        rows = torch.cat([images[:, None], self.training[found]], 1)
        halves = rows.split(-(-len(rows) // 2))
        return self._enlarged(beside([grid(self._shown(half.flatten(0, 1)), 1 + NEAREST) for half in halves]))

    def _labels(self, asked: Asked) -> list[int]:
        _whole("count", asked.count, 1, IMAGES)
        _whole("seed", asked.seed, 0, 2**32 - 1)
        names = self.model.class_names
        if not names:
            return [0] * asked.count
        if asked.label == ALL:
            return [k % len(names) for k in range(asked.count)]
        return [number_of(str(asked.label), names)] * asked.count

    def _told(self, asked: Asked) -> Trained:
        """The model with another sampler and guidance; the network is the same."""
        _whole("steps", asked.steps, 1, self.most_steps)
        if asked.sampler not in self.samplers:
            raise ValueError(f"sampler: there are {', '.join(self.samplers)}")
        sampler = self.samplers[asked.sampler] | {"steps": asked.steps, "batch_size": asked.count}
        config = self.model.config | {"sampler": sampler}
        if self.guided:
            if not isinstance(asked.guidance_scale, int | float) or not 0 <= asked.guidance_scale <= SCALE:
                raise ValueError(f"guidance: a number from 0 to {SCALE:g}")
            config |= {"guidance_scale": float(asked.guidance_scale)}
            config |= {} if asked.guidance_scale != 1 else {"guidance_interval": None, "guidance_rescale": 0.0}
        values = {f"sampler.{key}": value for key, value in sampler.items()}
        faults = conflicts(values | {f"diffusion.{key}": value for key, value in config["diffusion"].items()})
        if faults:
            raise ValueError(faults[0])
        model = copy.copy(self.model)
        model.config, model.sampler = config, make_sampler_of(config)
        return model

    def _picture(self, images: Tensor) -> Image.Image:
        return self._enlarged(grid(self._shown(images), min(COLUMNS, len(images))))

    def _shown(self, images: Tensor) -> Tensor:
        return shown(images, self.model.config["data"].get("render", "none"))

    def _enlarged(self, picture: Image.Image) -> Image.Image:
        zoom = max(1, SIDE // max(picture.size))
        picture = on_checkerboard(picture)
        return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)


def _whole(name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{name}: a whole number from {low} to {high}")
