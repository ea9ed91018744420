"""An evaluation as text and as an image."""

import torch
from PIL import Image

from diffusion_lit.config.metric_columns import COLUMNS
from diffusion_lit.evaluation.metrics import Comparison
from diffusion_lit.imaging.grids import draw_grid

ROWS, NEAREST = 12, 3  # images of the panel, and nearest training images of each
PRINTED_CLASSES = 20  # in the text


def draw_memorization_panel(c: Comparison) -> Image.Image:
    """Draw the generated images most like a copy, each before its nearest training images.

    These are first by pixels, then by features. The two numbers of a row are the ratios of
    `Neighbors`; below 1/3 is a copy.
    """
    by_pixels, by_features = c.neighbors["pixels"], c.neighbors["features"]
    order = by_pixels.ratio.argsort()[:ROWS]
    nearest = [by_space.index[order, :NEAREST] for by_space in c.neighbors.values()]
    columns = torch.cat([c.generated.images[order, None], *[c.training.images[index] for index in nearest]], 1)
    names = [f"{by_pixels.ratio[k]:.2f} {by_features.ratio[k]:.2f}" for k in order]
    title = f"generated, {NEAREST} nearest by pixels, {NEAREST} by features"
    return draw_grid(columns.flatten(0, 1), columns.shape[1], names, title)


def format_evaluation(result: dict, per_class: list[dict]) -> list[str]:
    """Return the lines that `evaluate` prints: settings, metrics, and the first classes."""
    settings = result["settings"]
    features, reference, sampler = settings["features"], settings["reference"], settings["sampler"]
    guidance = "" if settings["guidance_scale"] is None else f", guidance scale {settings['guidance_scale']:g}"
    facts = [f"{name.replace('_', ' ')} {value:.1%}" for name, value in features.items() if isinstance(value, float)]
    lines = [
        f"evaluated  {result['num_images']:,} images of {settings['checkpoint']}, {settings['weights']}, seed "
        f"{settings['seed']}, {sampler['name']}, NFE {result['nfe']:g}{guidance}",
        f"features   {features['name']} ({', '.join([features['digest'], *facts])})",
        f"reference  {reference['split']}, {reference['images']:,} images",
    ]
    for name, column in COLUMNS.items():
        if name in result:
            heading = "FID" if (name, features["name"]) == ("fd", "inception") else column.heading
            number = f"{_interval(result, name, column.format)}{column.unit}"
            lines.append(f"{heading:<10} {number}{_describe_real(result, name, column.format)}")
    for row in per_class[:PRINTED_CLASSES]:
        formats = {"class_accuracy": ".1%", "kid": ".4g"}
        values = "  ".join(f"{key} {_interval(row, key, form)}" for key, form in formats.items() if key in row)
        lines.append(f"  {row['class'][:20]:<20} {row['images']:>6,} images  {values}")
    if len(per_class) > PRINTED_CLASSES:
        lines.append(f"  {len(per_class) - PRINTED_CLASSES} more classes in result.json")
    return lines


def _interval(values: dict, key: str, form: str) -> str:
    """Return "3.2 [3.0, 3.4]", with the 95 % interval if there is one."""
    low, high = values.get(f"{key}_low"), values.get(f"{key}_high")
    return f"{values[key]:{form}}" + ("" if low is None else f" [{low:{form}}, {high:{form}}]")


def _describe_real(result: dict, name: str, form: str) -> str:
    """Return the same metric of real images, if it was measured; the bias of FD depends on their number."""
    if name == "fd":
        unbiased = f", without bias {result['fd_unbiased']:.4g}"
        if "fd_real" not in result:
            return unbiased
        real, real_unbiased, n = (result[f"fd_real{suffix}"] for suffix in ("", "_unbiased", "_images"))
        return f"{unbiased} ({n:,} real images of the other split {real:.4g}, without bias {real_unbiased:.4g})"
    key = name.replace("copied_", "copied_val_") if name.startswith("copied_") else f"{name}_real"
    images = "real images of the other split" if name == "kid" else "validation images"
    return f" ({images} {_interval(result, key, form)})" if result.get(key) is not None else ""
