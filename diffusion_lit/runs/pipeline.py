"""Pipeline: a trained model in Python, from a run folder, a published folder, the Hugging Face hub, or a module."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor, nn

from diffusion_lit.diffusion.seeds import image_seeds
from diffusion_lit.imaging.grids import to_pil
from diffusion_lit.runs.diffusers_format import resolve_pretrained
from diffusion_lit.runs.load import TrainedModel, generate_with_progress
from diffusion_lit.sampling.labels import Label, parse_class, row_names
from diffusion_lit.sampling.previews import labels_in_rows
from diffusion_lit.text.prompt_condition import PromptCondition


class Pipeline:
    """Generates the images that `python -m diffusion_lit.sample` generates, to the byte.

    Args:
        model: a trained DiffusionModule, or a TrainedModel, for example with
            another sampler.

    Examples:
        >>> pipeline = Pipeline.from_pretrained("outputs/digits/<run>")  # doctest: +SKIP
        >>> pipeline(classes=["3", "8"], num_images=16, seed=0)[0].save("three.png")  # doctest: +SKIP
        >>> Pipeline.from_pretrained("outputs/tiles_prompt/<run>")("a golden dragon")  # doctest: +SKIP
        >>> Pipeline(module)(num_images=4, seed=0)  # doctest: +SKIP
    """

    def __init__(self, model: nn.Module | TrainedModel):
        self.model = model if isinstance(model, TrainedModel) else TrainedModel.from_module(model)

    @classmethod
    def from_pretrained(cls, path: str | Path, device: str = "auto", **settings: Any) -> "Pipeline":
        """Load a run folder, a published folder or an id on the hub.

        Args:
            path: folder, or an id such as "me/digits".
            device: "auto" (a GPU if there is one), "cpu", "cuda:1", ...
            settings: those of `TrainedModel.from_run`, such as `checkpoint`,
                `weights`, `guidance_scale`.

        Raises:
            UserError: if there is no model, with a message that says what to do.
        """
        return cls(TrainedModel.from_run(resolve_pretrained(str(path)), device=device, **settings))

    @property
    def class_names(self) -> list[str]:
        """Names of the classes; empty for an unconditional model."""
        return list(self.model.class_names)

    def __call__(
        self,
        classes: int | str | Sequence[int | str] | None = None,
        num_images: int = 8,
        seed: int = 0,
        output_type: str = "pil",
        progress: bool = True,
        negative_prompt: str = "",
    ) -> list[Image.Image] | np.ndarray | Tensor:
        """Generate images, divided among the classes or prompts. Image k depends on `seed` and k alone.

        Args:
            classes: names or numbers, or one; all classes if None. Of a model with a text encoder
                the prompts, or one prompt; None for those of its previews. Must be None for
                a model without either.
            num_images: number of images in all.
            seed: of the initial noise.
            output_type: "pil"; "np", float32 (N, H, W, C) in [0, 1]; "pt", float32
                (N, C, H, W) in [0, 1].
            negative_prompt: prompt that guidance leads away from.
            progress: whether to show a progress bar.

        Raises:
            ValueError: for an unknown class, prompt or output type, or no image.
        """
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type={output_type!r}: must be one of pil, np, pt")
        if num_images < 1:
            raise ValueError(f"num_images={num_images}: must be 1 or more")
        model = self.model
        if isinstance(model.condition, PromptCondition):
            self._require_known([negative_prompt])
            model = replace(model, condition=replace(model.condition, negative=negative_prompt))
        elif negative_prompt:
            raise ValueError("negative_prompt: this model has no prompts")
        labels, seeds = labels_in_rows(self._parse(classes), num_images), image_seeds(seed, num_images)
        images = generate_with_progress(model, labels, seeds, show_progress=progress).images
        if output_type == "pil":
            return [to_pil(image) for image in images]
        images = images.float() / 255
        return images if output_type == "pt" else images.permute(0, 2, 3, 1).numpy()

    def _require_known(self, prompts: Iterable[str]) -> None:
        encoder = self.model.condition.encoder
        for prompt in prompts:
            if encoder.is_unknown(prompt):
                raise ValueError(f"{prompt}: no training caption has a word of this prompt")

    def _parse(self, requests: Any) -> list[Label]:
        """Return the labels of classes or prompts."""
        requests = requests.tolist() if hasattr(requests, "tolist") else requests  # of numpy or torch
        requests = [requests] if isinstance(requests, str | int) else requests
        if isinstance(self.model.condition, PromptCondition):
            prompts = requests or row_names(self.model.config)
            self._require_known(map(str, prompts))
            return [str(prompt) for prompt in prompts]
        names = self.class_names
        if requests is not None and not names:
            raise ValueError("classes: this model has none")
        if requests is not None and not len(requests):
            raise ValueError("classes=[]: has no class. Name one or more, or leave it out")
        return [*range(len(names))] or [0] if requests is None else [parse_class(name, names) for name in requests]
