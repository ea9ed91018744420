"""Levels and attention of a UNet chosen by the image size, and what is unwise about a network for large images.

`conf/model/unet.yaml`, `unet_small.yaml` and `unet_text.yaml` give the channels for 32x32
pixels. The interpolations `${sized_channels:...}`, `${sized_attention:...}` and
`${sized_attentions:...}` there are resolved by the functions here.
"""

import math
from collections.abc import Callable, Sequence

from omegaconf import OmegaConf

from diffusion_lit.imaging.sizes import ImageSize, format_size, height_width

COARSEST = 4, 8  # px, the shorter side of the coarsest level is between them
MAX_POSITIONS = 32 * 32  # of an attention, whose cost grows with their square
MAX_COARSEST = 16  # px, the shorter side of the coarsest level
LARGE, MANY_IMAGES = 128, 5000  # px, and the images from which a network learns such a size without copying


def choose_channels(channels: Sequence[int], image_size: ImageSize) -> list[int]:
    """Return the channels of each level for an image size, from those for 32x32 pixels.

    A level is added until the shorter side of the coarsest one is at most 8, each
    with the first number of channels; levels whose shorter side is below 4 are left
    out. If the image cannot be halved so often, fewer are added.

    >>> choose_channels([32, 64, 64], 256), choose_channels([32, 64, 64], 8)
    ([32, 32, 32, 32, 64, 64], [32, 64])
    """
    sides, count = height_width(image_size), len(channels)
    while min(sides) / 2 ** (count - 1) > COARSEST[1]:
        count += 1
    while count > 1 and min(sides) / 2 ** (count - 1) < COARSEST[0]:
        count -= 1
    while count > len(channels) and any(side % 2 ** (count - 1) for side in sides):
        count -= 1
    return [channels[0]] * (count - len(channels)) + list(channels[:count])


def choose_attention(side: int, image_size: ImageSize, channels: Sequence[int]) -> list[int]:
    """Return the index of the level with self-attention, the finest with at most `side` x `side` positions or the last.

    >>> choose_attention(16, 256, [128, 128, 128, 256, 256, 256])
    [4]
    """
    height, width = height_width(image_size)
    coarsest = len(channels) - 1
    return [next((k for k in range(coarsest) if height * width / 4**k <= side**2), coarsest)]


def _register(name: str, choose: Callable[..., list[int]], fallback: int) -> None:
    """Register a function as `${name:...}`; for faulty arguments, which are reported themselves, it returns one."""

    def resolve(*arguments) -> list[int]:
        try:
            return choose(*arguments)
        except (TypeError, ValueError, OverflowError):
            return arguments[fallback]

    OmegaConf.register_new_resolver(name, resolve, replace=True)


_register("sized_channels", choose_channels, 0)
_register("sized_attention", choose_attention, 2)
# the same level and all coarser ones
_register("sized_attentions", lambda side, size, c: [*range(*choose_attention(side, size, c), len(c))], 2)


def find_divisor(model: dict) -> int:
    """Return the number that each side of an image must be a multiple of; 1 for networks of a user."""
    if "patch_size" in model:
        return model["patch_size"]
    if "features" in model:  # context_unet, which always has three levels
        return 4
    return 2 ** max(0, len(_level_sides(model)) - 1)


def describe_levels(model: dict) -> str:
    """Return the levels of a UNet, "4 levels from 32x32 to 4x4, attention at 16x16, 4x4"; empty for other networks."""
    sides = _level_sides(model)
    if not sides:
        return ""
    attended = ", ".join(format_size(size) for size in dict.fromkeys(_attended_sides(model)))
    attention = f"attention at {attended}" if attended else "no attention"
    return f"{len(sides)} levels from {format_size(sides[0])} to {format_size(sides[-1])}, {attention}"


def find_size_faults(model: dict, images: int) -> list[str]:
    """Return what is unwise about a network and a number of images for large images, each with what to do.

    Args:
        model: the `model` group, resolved.
        images: for training.
    """
    if "image_size" not in model:  # a network of the user's own
        return []
    sides, attended, notes = _level_sides(model), _attended_sides(model), []
    size, shorter = model["image_size"], min(height_width(model["image_size"]))
    multiple = 2 ** max(0, math.ceil(math.log2(shorter / COARSEST[1])))
    nearest = multiple * round(shorter / multiple)
    advice = "model=unet and unet_small without model.block_out_channels choose levels and attention for the image size"
    if "patch_size" in model:
        advice = f"Set model.patch_size={math.ceil(shorter / math.sqrt(MAX_POSITIONS) / 2) * 2}"
    elif sides and len(choose_channels([0], size)) <= len(sides):  # it has as many as this size can be halved to
        advice = f"data.image_size={nearest} can be halved until that is {nearest // multiple}x{nearest // multiple}"
    largest = max(attended, key=lambda side: side[0] * side[1], default=(0, 0))
    if largest[0] * largest[1] > MAX_POSITIONS:
        notes.append(
            f"attention at {format_size(largest)} compares {largest[0] * largest[1]:,} positions with each other, "
            f"which is slow and takes much memory. {advice}"
        )
    elif sides and min(sides[-1]) > MAX_COARSEST:
        notes.append(
            f"{len(sides)} levels are few for {format_size(size)}: the coarsest is {format_size(sides[-1])}, so that "
            f"the network can hardly relate distant parts of an image. {advice}"
        )
    if shorter >= LARGE and images < MANY_IMAGES:
        notes.append(
            f"{images:,} images are few for {format_size(size)}: a network copies so few easily. With "
            f"data.image_size=64 a step costs about 1/{round(shorter**2 / 64**2)} and shapes are "
            "learned sooner. evaluate metrics=[memorization] counts copies"
        )
    return notes


def _level_sides(model: dict) -> list[tuple[int, int]]:
    """Return height and width of each level, fine to coarse; [] for networks without levels or of a user."""
    if "image_size" not in model:
        return []
    channels = model.get("architecture", model).get("block_out_channels") or model.get("widths", (0,))[1:]
    height, width = height_width(model["image_size"])
    return [(height // 2**k, width // 2**k) for k in range(len(channels))]


def _attended_sides(model: dict) -> list[tuple[int, int]]:
    """Return height and width of each level with attention among all of its positions."""
    if "patch_size" in model:
        return [tuple(side // model["patch_size"] for side in height_width(model["image_size"]))]
    model, sides = model.get("architecture", {}) | model, _level_sides(model)
    types = model.get("down_block_types", ())
    levels = [k for k, name in enumerate(types) if name.startswith("Attn")] or list(model.get("attention_levels", ()))
    levels = [] if model.get("attention") == "linear" else levels
    middle = [model.get("middle_attention"), model.get("add_attention"), "bottleneck_attention" in model]
    levels += [len(sides) - 1] * any(middle)
    return [sides[k] for k in levels if k < len(sides)]
