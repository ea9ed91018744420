"""The server side of `diffusion_lit.app`: from the request of a visitor to images."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffusion_lit.config.constraints import find_conflicts
from diffusion_lit.config.groups import list_options, read_option
from diffusion_lit.data.store import center_crop
from diffusion_lit.diffusion.seeds import Seed, image_seeds, mix_seeds
from diffusion_lit.evaluation.memorization import NeighborSearch
from diffusion_lit.evaluation.metrics import PIXELS, pixel_vectors
from diffusion_lit.imaging.grids import add_checkerboard, draw_grid, hstack_images
from diffusion_lit.imaging.rows import choose_rows
from diffusion_lit.imaging.skins import render_images
from diffusion_lit.runs.build import make_configured_sampler
from diffusion_lit.runs.load import TrainedModel
from diffusion_lit.runs.resume import flatten_config
from diffusion_lit.runs.run_images import load_run_images
from diffusion_lit.sampling.labels import Label, parse_class
from diffusion_lit.sampling.previews import FrameRecorder, draw_class_grid, labels_in_rows
from diffusion_lit.system.errors import Exit, UserError

MAX_IMAGES, MAX_STEPS, MAX_SCALE = 16, 250, 20.0  # limits of a request
MAX_PROMPT = 500  # characters
COLUMNS, NEIGHBORS = 4, 4  # of the grid, and of each image
CANDIDATES = 2 * NEIGHBORS  # whose distances are measured exactly
ALL = "all classes"
MIN_SIDE = 512  # px, grids are enlarged by a whole factor towards this
MAX_TRAINING = 20_000  # training images that are searched for neighbors

log = logging.getLogger("diffusion_lit.app")


def load_training_images(model: TrainedModel, accept: Sequence[str] = ()) -> Tensor | None:
    """Return the first training images, uint8 (M, C, H, W); None if they no longer exist or are only streamed.

    Raises:
        UserError: exit 4 if they are not those of the run, unless "data" is in
            `accept`.
    """
    data = model.config["data"]
    if "_target_" not in data or data.get("streaming") == "every_epoch":
        return None
    try:
        train = center_crop(load_run_images(data, model.checkpoint, accept)[0], data["image_size"])
    except (UserError, OSError) as error:
        if isinstance(error, UserError) and error.exit_code == Exit.CHECKPOINT:
            raise
        log.warning("neighbors  not shown: %s", str(error).splitlines()[0])
        return None
    return torch.from_numpy(np.array(train.images[:MAX_TRAINING]))


@dataclass(frozen=True)
class Request:
    """Untrusted values from a browser."""

    label: str
    count: int
    seed: int
    sampler: str
    steps: int
    guidance_scale: float
    mix: float = 0.0  # of the noise with that of the next seed


@dataclass(frozen=True)
class Result:
    """Images uint8 (N, C, H, W), and a grid of them for each frame of the denoising, the images last."""

    images: Tensor
    frames: list[Image.Image]


class ImageSession:
    """A trained model that serves requests.

    Args:
        model: the trained model.
        training: images uint8 (M, C, H, W) to search for neighbors; None to search
            none.
    """

    def __init__(self, model: TrainedModel, training: Tensor | None = None):
        self.model, self.training = model, training
        self.search = None if training is None else NeighborSearch(pixel_vectors(training, PIXELS))
        process = model.config["diffusion"].get("process", "discrete")
        options = {name: read_option("sampler", name) for name in list_options("sampler")}
        self.samplers = {name: option for name, option in options.items() if process in option["serves"]}
        own = {model.config["sampler"]["name"]: model.config["sampler"]}
        self.samplers = own if self.is_student else self.samplers | own

    @property
    def classes(self) -> list[str]:
        """Return the choices of the class menu; empty for an unconditional model."""
        names = self.model.class_names
        return [ALL, *names] if names and not self.prompts else []

    @property
    def prompts(self) -> list[str]:
        """Return the prompts of the run's previews; empty for a run without prompts."""
        return list(self.model.config.get("preview_prompts") or ())

    @property
    def is_student(self) -> bool:
        """Return whether the model is distilled, so that its sampler and steps are fixed."""
        return bool(self.model.config.get("distill"))

    @property
    def has_guidance(self) -> bool:
        """Return whether the network was trained with label dropout, which guidance needs."""
        return bool(self.model.condition.has_null and self.model.config["label_dropout"])

    @property
    def max_steps(self) -> int:
        """Return the largest number of sampling steps that a visitor can choose."""
        return min(MAX_STEPS, self.model.diffusion.process.num_train_timesteps)

    def generate(self, request: Request, on_step: Callable[[int, int], None] = lambda done, steps: None) -> Result:
        """Generate the images of a request.

        Args:
            request: the values from a browser.
            on_step: called with the number of finished steps and of all steps.

        Raises:
            ValueError: if a value is not allowed, with a message for the visitor.
        """
        labels, seeds, model = self.parse_labels(request), parse_seeds(request), self._configure_model(request)
        steps = model.evaluations
        film = FrameRecorder(range(request.count), steps, model.codec)

        def step(first: int, k: int, x: Tensor) -> None:
            film(first, k, x)
            on_step(k + 1, steps)

        images = model.generate(labels, seeds, step)
        return Result(images, [self._draw_grid(request, frame, labels) for frame in [*film.frames[:-1], images]])

    def draw(self, request: Request) -> Image.Image:
        """Return the last frame of `generate` alone, which takes the least time."""
        labels, seeds, model = self.parse_labels(request), parse_seeds(request), self._configure_model(request)
        return self._draw_grid(request, model.generate(labels, seeds), labels)

    def find_neighbors(self, images: Tensor) -> Image.Image | None:
        """Return a grid with each image followed by its nearest training images, by L2 distance of pixels."""
        if self.search is None:
            return None
        found = self.search(pixel_vectors(images, PIXELS), CANDIDATES).index[:, :NEIGHBORS]
        neighbors = self.training[found]
        rows = torch.cat([images[:, None], neighbors], 1)
        halves = [half.flatten(0, 1) for half in rows.split(-(-len(rows) // 2))]
        grids = [draw_grid(render_images(half, self.model.render), 1 + NEIGHBORS) for half in halves]
        return enlarge(hstack_images(grids))

    def parse_labels(self, request: Request) -> list[Label]:
        """Return the label of each image, in the order of `sample`. Raise ValueError if there is no such class."""
        check_int("images", request.count, 1, MAX_IMAGES)
        names = self.model.class_names
        if self.prompts:
            return [self._check_prompt(request.label)] * request.count
        if not names:
            return [0] * request.count
        if request.label == ALL:
            return list(labels_in_rows(choose_rows(len(names), request.count), request.count))
        return [parse_class(str(request.label), names)] * request.count

    def _check_prompt(self, prompt: object) -> str:
        if not isinstance(prompt, str) or len(prompt) > MAX_PROMPT:
            raise ValueError(f"prompt: must be a text of at most {MAX_PROMPT} characters")
        encoder = self.model.condition.encoder
        if encoder.is_unknown(prompt):
            raise ValueError(f"prompt: {'; '.join(encoder.find_faults(prompt)) or 'it has no words'}")
        return prompt

    def configure_sampler(self, request: Request) -> dict:
        """Return the settings of a request's sampler. Raise ValueError if they are not allowed."""
        check_int("steps", request.steps, 1, self.max_steps)
        if not isinstance(request.sampler, str) or request.sampler not in self.samplers:
            raise ValueError(f"sampler: must be one of {', '.join(self.samplers)}")
        return self.samplers[request.sampler] | {"steps": request.steps, "batch_size": request.count}

    def _configure_model(self, request: Request) -> TrainedModel:
        """Return the model with the sampler and the guidance of a request."""
        sampler, guidance = self.configure_sampler(request), {}
        if self.has_guidance:
            check_number("guidance scale", request.guidance_scale, MAX_SCALE)
            guidance = {"guidance_scale": float(request.guidance_scale)}
            guidance |= {} if request.guidance_scale != 1 else {"guidance_interval": None, "guidance_rescale": 0.0}
        settings = {"sampler": sampler, "diffusion": self.model.config["diffusion"]}
        if self.is_student:
            settings["learned_steps"] = self.model.config["sampler"]["steps"]
        if faults := find_conflicts(flatten_config(settings)):
            raise ValueError(faults[0])
        return self.model.with_sampler(make_configured_sampler({"sampler": sampler}), **guidance)

    def _draw_grid(self, request: Request, images: Tensor, labels: list[Label]) -> Image.Image:
        """Draw images in a square, or those of all classes with a named row for each class."""
        images = render_images(images, self.model.render)
        if request.label == ALL and self.model.class_names:
            return enlarge(draw_class_grid(images, labels, self.model.class_names))
        return enlarge(draw_grid(images, min(COLUMNS, len(images))))


def enlarge(image: Image.Image) -> Image.Image:
    """Return an image on a checkerboard, enlarged by a whole factor to about `MIN_SIDE`."""
    zoom = max(1, MIN_SIDE // max(image.size))
    return add_checkerboard(image).resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)


def parse_seeds(request: Request) -> list[Seed]:
    """Return the seed of each image, mixed with that of the next seed.

    Raises:
        ValueError: if the seed or the mix is not allowed.
    """
    check_int("seed", request.seed, 0, 2**32 - 1)
    check_number("mix", request.mix, 1.0)
    seeds = image_seeds(request.seed, request.count)
    following = image_seeds(request.seed + 1, request.count)
    return mix_seeds(seeds, following, float(request.mix))


def check_number(name: str, value: object, high: float) -> None:
    """Raise ValueError unless a value is a number from 0 to `high`."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= high:
        raise ValueError(f"{name}: must be a number from 0 to {high:g}")


def check_int(name: str, value: object, low: int, high: int) -> None:
    """Raise ValueError unless a value is an integer in a range."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{name}: must be an integer from {low} to {high}")
