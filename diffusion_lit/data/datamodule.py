"""The LightningDataModule: from a data source to a uint8 store to batches by position."""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from diffusion_lit.config.constraints import find_conflicts
from diffusion_lit.config.targets import build
from diffusion_lit.data.batches import Batches, ValidationBatches
from diffusion_lit.data.decoding import MAX_PIXELS
from diffusion_lit.data.sources.dataset import DatasetSource
from diffusion_lit.data.sources.folder import ImageFolder
from diffusion_lit.data.store import ImageStore, load_splits
from diffusion_lit.data.streaming import StreamedStore
from diffusion_lit.data.validation_split import NO_HASHES, KnownImages, describe_change, summarize_images
from diffusion_lit.imaging.sizes import ImageSize
from diffusion_lit.system.errors import CheckpointError, raise_faults

SOURCE_KEYS = ("streaming", "caption_column")  # of a source, which fit some arguments only


class ImageDataModule(L.LightningDataModule):
    """Decode all images once in `setup`, and serve them by their position in an endless stream.

    An epoch is one pass over the training images in complete optimizer steps. The next
    epoch, or a resumed run, continues where `trainer.global_step` is, so the images of step
    k depend on the seed and on k alone.

    Args:
        source: a folder of images, a map-style torch `Dataset`, or any source
            (`diffusion_lit.data.sources.data_source`).
        image_size: pixels, one number or [height, width].
        batch_size: images per process and forward pass.
        channels: 1 gray, 3 RGB, 4 RGBA.
        val_fraction: share of the images for validation, unless the source has a validation
            split.
        val_images: images of a validation: a fixed random subset, or all, some more than
            once with other noise.
        seed: decides the order and everything random about an image.
        flip: probability of mirroring an image; applied by `DiffusionModule` on the device.
        transforms: `torchvision.transforms.v2`, or any functions of a uint8 image (C, H, W)
            that keep its shape and type. Their random numbers are a function of the seed
            and the position.
        random_crop: pixels. Images are decoded that much larger, and training takes random
            windows of `image_size`.
        cache_dir: a folder that keeps the decoded images; None keeps them in RAM.
        accept_changed_data: resume although the images differ from those of the checkpoint.
        known: images of a run to resume, which keep their splits.
        resample: see `diffusion_lit.data.decoding.Decoding`.
        fit: see `Decoding`.
        background: see `Decoding`.
        alpha: see `Decoding`.
        render: see `Decoding`.
        value_range: see `Decoding`; "auto" finds it over all images.
        max_pixels: see `Decoding`.
        caption_colors: captions begin with the main colors of their images, see
            `diffusion_lit.imaging.color_names.name_colors`.

    Raises:
        UserError: exit 2 for arguments that the command line refuses together.

    Examples:
        >>> data = ImageDataModule("photos", image_size=32, batch_size=64)  # doctest: +SKIP
    """

    def __init__(
        self,
        source: str | Path | object,
        image_size: ImageSize = 32,
        batch_size: int = 64,
        *,
        channels: int = 3,
        val_fraction: float = 0.05,
        val_images: int = 320,
        seed: int = 0,
        flip: float = 0.0,
        transforms: Sequence[Callable[[Tensor], Tensor]] = (),
        random_crop: int = 0,
        cache_dir: str | None = None,
        accept_changed_data: bool = False,
        known: KnownImages | None = None,
        resample: str = "bicubic",
        fit: str = "crop",
        background: Sequence[int] = (255, 255, 255),
        alpha: str = "keep",
        render: str = "none",
        value_range: Sequence[float] | str | None = "auto",
        max_pixels: int = MAX_PIXELS,
        caption_colors: bool = False,
    ):
        super().__init__()
        if isinstance(source, str | Path):
            source = ImageFolder(str(source))
        self.source: Any = source if hasattr(source, "splits") else DatasetSource(source)
        self.batch_size, self.seed, self.flip, self.transforms = batch_size, seed, flip, transforms
        self.accept_changed_data, self.val_images = accept_changed_data, val_images
        self.known = known or KnownImages()
        self.config: dict[str, Any] = {
            "image_size": image_size, "channels": channels, "val_fraction": val_fraction, "random_crop": random_crop,
            "cache_dir": cache_dir, "resample": resample, "fit": fit, "background": background, "alpha": alpha,
            "render": render, "value_range": value_range, "max_pixels": max_pixels,
            "caption_colors": caption_colors,
        }  # fmt: skip
        self._require_fitting()
        self.train: ImageStore | StreamedStore = None  # type: ignore[assignment]  # until `setup`
        self.val: ImageStore | None = None  # None: no validation images

    def _require_fitting(self) -> None:
        """Raise UserError (exit 2) for arguments that the command line refuses together."""
        own = {key: getattr(self.source, key) for key in SOURCE_KEYS if hasattr(self.source, key)}
        settings = {f"data.{key}": value for key, value in (self.config | own).items()}
        raise_faults("the arguments do not fit:", find_conflicts(settings))

    @property
    def class_names(self) -> list[str]:
        """Return the class names; empty without labels."""
        return list(self.source.class_names)

    @property
    def captions(self) -> list[str]:
        """Return the different captions of the training images, sorted; empty without captions."""
        return sorted({text for own in self.train.captions or () for text in own})

    def setup(self, stage: str | None = None) -> None:
        """Decode the images, or find them in `cache_dir`."""
        if self.train is None:
            self.train, self.val = load_splits(self.source, self.config, self.known)

    def batches(
        self,
        batch_size: int,
        step: Callable[[], int],
        accumulate: int = 1,
        rank: int = 0,
        world: int = 1,
        device: torch.device | None = None,
    ) -> Batches:
        """Return the training batches of one rank from an optimizer step on."""
        settings = self.config["image_size"], self.flip, self.transforms, device
        return Batches(self.train, self.seed, batch_size, step, accumulate, rank, world, *settings)

    def global_batch(self, step: int) -> dict:
        """Return the images of every rank and micro-batch in optimizer step `step`, counted from 0."""
        size = self.batch_size * self.trainer.accumulate_grad_batches * self.trainer.world_size
        return next(iter(self.batches(size, lambda: step)))

    def train_dataloader(self) -> Batches:
        """Return the micro-batches of this rank."""
        trainer = self.trainer
        if trainer is None:
            return self.batches(self.batch_size, lambda: 0)
        accumulate, rank, world = trainer.accumulate_grad_batches, trainer.global_rank, trainer.world_size
        device = batch_device(trainer)
        return self.batches(self.batch_size, lambda: trainer.global_step, accumulate, rank, world, device)

    def val_dataloader(self) -> ValidationBatches | list:
        """Return the batches of validation images of this rank; an empty list without validation images."""
        if self.val is None:
            return []
        if self.trainer is None:
            return ValidationBatches(self.val, self.val_images)
        rank, world = self.trainer.global_rank, self.trainer.world_size
        return ValidationBatches(self.val, self.val_images, rank, world, batch_device(self.trainer))

    def state_dict(self) -> dict:
        """Return fingerprints and numbers of the images, and the hashes of all that were ever in each split."""
        known = self.known.add(self.train.hashes, self.val.hashes if self.val else NO_HASHES)
        hashes = {name: torch.from_numpy(getattr(known, name).view(np.int64)) for name in ("train", "val")}
        return summarize_images(self.train, self.val) | hashes

    def load_state_dict(self, state: dict) -> None:
        """Raise UserError if the images are not those of the checkpoint, unless `accept_changed_data`."""
        change = describe_change(state, self.train, self.val)
        if change and not self.accept_changed_data:
            raise CheckpointError(
                f"the training images have changed since the checkpoint: {change}. Restore them, or add accept=[data] "
                "to continue with the new ones."
            )
        self.known = KnownImages.from_state(state)


def batch_device(trainer: L.Trainer) -> torch.device | None:
    """Return the CUDA device on which batches are made; None where Lightning copies them."""
    device = trainer.strategy.root_device
    return device if device.type == "cuda" else None


def datamodule_from_config(source: object, data: dict, seed: int, batch_size: int, **more: object) -> ImageDataModule:
    """Return the data module of a `data` group; keys that are no argument of it belong to the source."""
    known = inspect.signature(ImageDataModule).parameters.keys() & data.keys() - {"transforms"}
    transforms = [build(leaf) for leaf in data.get("transforms") or ()]
    settings = {key: data[key] for key in known} | {"seed": seed, "batch_size": batch_size, "transforms": transforms}
    return ImageDataModule(source, **settings | more)
