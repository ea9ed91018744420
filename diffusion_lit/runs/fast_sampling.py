"""Generate many images fast: precision, compilation, and large batches on a GPU."""

import logging
import math
from dataclasses import replace

import torch
from omegaconf import DictConfig

from diffusion_lit.networks.compilation import compile_network
from diffusion_lit.runs.load import TrainedModel
from diffusion_lit.system.bfloat16 import AMX, AVX512, choose_precision, inspect_device

log = logging.getLogger(__name__)

LARGE_BATCH, PIXELS = 256, 32 * 32  # images of so many pixels at a time, where a GPU makes many
DEFAULT_BATCH = 64  # on a GPU, see `make_sampler`
FAST_FLAGS = (AMX, AVX512)  # of a CPU; a forward pass gains by either


def speed_up(model: TrainedModel, config: DictConfig, num_images: int) -> TrainedModel:
    """Return the model with `precision`, `compile` and the batch size for a request; its network is changed in place.

    Pixels depend on all three, so a manifest lists them. `precision=auto` is logged
    with its reason.

    Args:
        model: as loaded.
        config: of the command, with the key `precision` and perhaps `compile`.
        num_images: images of the request.
    """
    precision, is_compiled = config.precision, config.get("compile", False)
    if precision == "auto":
        precision, reason = choose_precision(inspect_device(model.device.type), FAST_FLAGS)
        log.info("precision  %s: %s (precision=auto)", precision, reason)
    for net in [model.net, *([model.guide.net] if model.guide else [])]:
        if precision == "bf16-mixed":
            net.forward = torch.autocast(model.device.type, torch.bfloat16)(net.forward)
        if is_compiled:
            compile_network(net)
    model = replace(model, speed={"precision": precision, "compile": is_compiled})
    if model.config["sampler"]["batch_size"] is None and model.device.type == "cuda":
        size = choose_batch_size(num_images, math.prod(model.codec.image_shape[1:]))
        return model.with_sampler(replace(model.sampler, batch_size=size))
    return model


def choose_batch_size(num_images: int, pixels: int) -> int:
    """Return how many images a GPU makes at a time.

    Few images take the batches of previews, which have the same pixels. Many take larger ones,
    in about the memory of 256 images of 32x32.

    >>> choose_batch_size(64, 32 * 32), choose_batch_size(1000, 32 * 32), choose_batch_size(1000, 64 * 64)
    (64, 256, 64)
    """
    largest = max(DEFAULT_BATCH, LARGE_BATCH * PIXELS // pixels)
    return min(largest, LARGE_BATCH) if num_images >= LARGE_BATCH else DEFAULT_BATCH
