"""What the page of `diffusion_lit.app` does, without the page: from the request of a visitor to images."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from diffusion_lit.config.compose import build_source
from diffusion_lit.config.constraints import find_conflicts
from diffusion_lit.config.groups import list_options, read_option
from diffusion_lit.data.store import centre, load_splits
from diffusion_lit.diffusion.seeds import image_seeds
from diffusion_lit.evaluation.memorization import nearest
from diffusion_lit.evaluation.metrics import PIXELS, small
from diffusion_lit.imaging.grids import beside, grid, on_checkerboard
from diffusion_lit.imaging.skins import shown
from diffusion_lit.runs.build import make_configured_sampler
from diffusion_lit.runs.load import TrainedModel
from diffusion_lit.sampling.labels import number_of
from diffusion_lit.sampling.previews import Film
from diffusion_lit.system.errors import UserError

IMAGES, STEPS, SCALE = 16, 250, 20.0  # that a visitor may ask for at most
COLUMNS, NEAREST = 4, 4
ALL = "all classes"
SIDE = 512  # px that a grid has at least, by whole factors
TRAINING = 20_000  # training images that are searched for neighbors at most

log = logging.getLogger("diffusion_lit.app")


def load_training_images(data: dict) -> Tensor | None:
    """Return the first training images, uint8 (M, C, H, W), or None if they are no longer there or were never kept."""
    if "_target_" not in data or data.get("streaming") == "every_epoch":
        return None
    try:
        train = centre(load_splits(build_source(data), data)[0], data["image_size"])
    except (UserError, OSError) as error:
        log.warning("neighbours the training pictures are not shown: %s", str(error).splitlines()[0])
        return None
    return torch.from_numpy(train.images[:TRAINING].copy())


@dataclass(frozen=True)
class Request:
    """A request as it came from a browser: nothing in it is trusted."""

    label: str
    count: int
    seed: int
    sampler: str
    steps: int
    guidance_scale: float


@dataclass(frozen=True)
class Result:
    """Images uint8 (N, C, H, W), and grids of them while they are denoised, the last one of the images."""

    images: Tensor
    frames: list[Image.Image]


class Studio:
    """A trained model and what a visitor can do with it.

    Args:
        training: uint8 (M, C, H, W), searched for nearest images; None: no search.
    """

    def __init__(self, model: TrainedModel, training: Tensor | None = None):
        self.model, self.training = model, training
        self.vectors = None if training is None else small(training, PIXELS)
        process = model.config["diffusion"].get("process", "discrete")
        options = {name: read_option("sampler", name) for name in list_options("sampler")}
        self.samplers = {name: option for name, option in options.items() if process in option["serves"]}
        self.samplers |= {model.config["sampler"]["name"]: model.config["sampler"]}

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

    def make(self, request: Request, on_step: Callable[[int, int], None] = lambda done, steps: None) -> Result:
        """Generate the images of a request.

        Args:
            on_step: called with the number of steps that are done, and of all.

        Raises:
            ValueError: for a request that cannot be served, with a message for the visitor.
        """
        labels, model = self._labels(request), self._requested_model(request)
        steps = model.evaluations
        film = Film(range(request.count), steps, model.codec)

        def step(first: int, k: int, x: Tensor) -> None:
            film(first, k, x)
            on_step(k + 1, steps)

        images = model.generate(labels, image_seeds(request.seed, request.count), step)
        return Result(images, [self._grid(frame) for frame in [*film.frames[:-1], images]])

    def neighbours(self, images: Tensor) -> Image.Image | None:
        """Each image, and behind it the training images with the nearest pixels."""
        if self.vectors is None:
            return None
        found = nearest(small(images, PIXELS), self.vectors).index[:, :NEAREST]
        rows = torch.cat([images[:, None], self.training[found]], 1)
        halves = rows.split(-(-len(rows) // 2))
        return self._enlarged(beside([grid(self._shown(half.flatten(0, 1)), 1 + NEAREST) for half in halves]))

    def _labels(self, request: Request) -> list[int]:
        _whole("count", request.count, 1, IMAGES)
        _whole("seed", request.seed, 0, 2**32 - 1)
        names = self.model.class_names
        if not names:
            return [0] * request.count
        if request.label == ALL:
            return [k % len(names) for k in range(request.count)]
        return [number_of(str(request.label), names)] * request.count

    def _requested_model(self, request: Request) -> TrainedModel:
        """The model with another sampler and guidance; the network is the same."""
        _whole("steps", request.steps, 1, self.most_steps)
        if request.sampler not in self.samplers:
            raise ValueError(f"sampler: there are {', '.join(self.samplers)}")
        sampler, guidance = self.samplers[request.sampler] | {"steps": request.steps, "batch_size": request.count}, {}
        if self.guided:
            if not isinstance(request.guidance_scale, int | float) or not 0 <= request.guidance_scale <= SCALE:
                raise ValueError(f"guidance: a number from 0 to {SCALE:g}")
            guidance = {"guidance_scale": float(request.guidance_scale)}
            guidance |= {} if request.guidance_scale != 1 else {"guidance_interval": None, "guidance_rescale": 0.0}
        values = {f"sampler.{key}": value for key, value in sampler.items()}
        faults = find_conflicts(
            values | {f"diffusion.{k}": value for k, value in self.model.config["diffusion"].items()}
        )
        if faults:
            raise ValueError(faults[0])
        return self.model.replaced(make_configured_sampler({"sampler": sampler}), **guidance)

    def _grid(self, images: Tensor) -> Image.Image:
        return self._enlarged(grid(self._shown(images), min(COLUMNS, len(images))))

    def _shown(self, images: Tensor) -> Tensor:
        return shown(images, self.model.render)

    def _enlarged(self, image: Image.Image) -> Image.Image:
        zoom = max(1, SIDE // max(image.size))
        image = on_checkerboard(image)
        return image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)


def _whole(name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{name}: a whole number from {low} to {high}")
