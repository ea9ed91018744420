"""A trained model in Python: a run folder, a published folder or an id of the Hugging Face hub, and images from it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from diffusion_lit.diffusion.seeds import image_seeds
from diffusion_lit.imaging.grids import to_pil
from diffusion_lit.runs.diffusers_format import located
from diffusion_lit.runs.load import Trained
from diffusion_lit.sampling.labels import number_of
from diffusion_lit.sampling.previews import rows_of_classes
from diffusion_lit.system.console import progress_bar

OUTPUTS = ("pil", "np", "pt")


class Pipeline:
    """Makes the images that `python -m diffusion_lit.sample` makes, to the byte.

    Examples:
        >>> pipeline = Pipeline.from_pretrained("outputs/digits/<run>")  # doctest: +SKIP
        >>> pipeline(classes=["3", "8"], num_images=16, seed=0)[0].save("three.png")  # doctest: +SKIP
    """

    def __init__(self, model: Trained):
        self.model = model

    @classmethod
    def from_pretrained(cls, path: str | Path, device: str = "auto", **settings: object) -> "Pipeline":
        """
        Args:
            settings: those of `diffusion_lit.runs.load.Trained`, such as `checkpoint`, `weights`, `guidance_scale`.
        Raises:
            UserError: if there is no model, with a message that says what to do.
        """
        return cls(Trained(located(str(path)), device=device, **settings))

    @property
    def class_names(self) -> list[str]:
        return self.model.class_names

    def __call__(
        self,
        classes: Sequence[int | str] | None = None,
        num_images: int = 8,
        seed: int = 0,
        output_type: str = "pil",
        progress: bool = True,
    ) -> list[Image.Image] | np.ndarray | Tensor:
        """Images, in equal runs for each of `classes` (None: all), image k from seed and k.

        Args:
            classes: names or numbers; must be None in a model without classes.
            output_type: "pil"; "np", float32 (N, H, W, C) in [0, 1]; "pt", float32 (N, C, H, W) in [0, 1].
        Raises:
            ValueError: for a class or an output type that there is not.
        """
        if output_type not in OUTPUTS:
            raise ValueError(f"output_type={output_type!r}: must be one of {', '.join(OUTPUTS)}")
        if classes is not None and not self.class_names:
            raise ValueError("classes: this model has none")
        wanted = range(len(self.class_names)) if classes is None else [number_of(c, self.class_names) for c in classes]
        labels = rows_of_classes(list(wanted) or [0], num_images)
        model = self.model
        chunks = -(-num_images // model.sampler.batch_size)
        with progress_bar("sampling", shown=progress) as bar:
            task = bar.add_task("", total=chunks * len(model.sampler.build(model.diffusion.table).timesteps))
            images = model.generate(labels, image_seeds(seed, num_images), lambda first, k, x: bar.advance(task))
        if output_type == "pil":
            return [to_pil(image) for image in images]
        images = images.float() / 255
        return images if output_type == "pt" else images.permute(0, 2, 3, 1).numpy()
