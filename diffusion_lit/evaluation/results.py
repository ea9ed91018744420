"""An evaluation as text and as an image."""

import math

import torch
from PIL import Image

from diffusion_lit.config.metric_columns import COLUMNS
from diffusion_lit.evaluation.distances import SUBSET_IMAGES, SUBSETS
from diffusion_lit.evaluation.memorization import FALSE_ALARMS
from diffusion_lit.evaluation.metrics import Comparison
from diffusion_lit.imaging.grids import add_checkerboard, draw_grid

ROWS, NEAREST = 12, 3  # images of the panel, and nearest training images of each
PRINTED_CLASSES = 20  # in the text


def draw_memorization_panel(c: Comparison) -> Image.Image:
    """Draw the generated images most like a copy, each before its nearest training images.

    These are first by pixels, then by features. The two numbers of a row are the ratios of
    `Neighbors`; up to the thresholds in the title is a copy.
    """
    by_pixels, by_features = c.copies["pixels"], c.copies["features"]
    order = by_pixels.neighbors.ratio.argsort()[:ROWS]
    nearest = [found.neighbors.index[order, :NEAREST] for found in c.copies.values()]
    columns = torch.cat([c.generated.images[order, None], *[c.training.images[index] for index in nearest]], 1)
    names = [f"{by_pixels.neighbors.ratio[k]:.2f} {by_features.neighbors.ratio[k]:.2f}" for k in order]
    limits = f"{by_pixels.threshold:.2f}", f"{by_features.threshold:.2f}"
    title = f"generated, {NEAREST} nearest by pixels (copy ≤ {limits[0]}), {NEAREST} by features (≤ {limits[1]})"
    return add_checkerboard(draw_grid(columns.flatten(0, 1), columns.shape[1], names, title))


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
        f"reference  {_describe_reference(reference)}",
    ]
    withheld: dict[str, list[str]] = {}
    for name, column in COLUMNS.items():
        is_equal = math.isclose(result.get("fd", math.nan), result.get("fd64", 0), rel_tol=1e-6)
        if name == "fd64" and (is_equal or result.get("fd64_withheld", "") == result.get("fd_withheld")):
            continue  # the features have no more than 64 components
        if name in result:
            heading = "FID" if (name, features["name"]) == ("fd", "inception") else column.heading
            number = f"{_interval(result, name, column.format)}{column.unit}"
            lines.append(f"{heading:<10} {number}{_describe_context(result, name, column.format)}")
        elif (reason := result.get(f"{name}_withheld")) and column.heading not in withheld.setdefault(reason, []):
            withheld[reason].append(column.heading)
    lines += [f"{', '.join(headings):<10} withheld: {reason}" for reason, headings in withheld.items()]
    for row in per_class[:PRINTED_CLASSES]:
        formats = {"class_accuracy": ".1%", "kid": ".4g"}
        values = "  ".join(f"{key} {_interval(row, key, form)}" for key, form in formats.items() if key in row)
        lines.append(f"  {row['class'][:20]:<20} {row['images']:>6,} images  {values}")
    if len(per_class) > PRINTED_CLASSES:
        lines.append(f"  {len(per_class) - PRINTED_CLASSES} more classes in result.json")
    return lines


def _describe_reference(reference: dict) -> str:
    """Return what the images were compared with, and what is unknown about it."""
    images = [] if reference["images"] is None else [f"{reference['images']:,} images"]
    unknown = reference.get("unknown")
    unknown = [f"unknown, since the file does not say: {', '.join(unknown)}"] if unknown else []
    return ", ".join([reference["split"] or reference["statistics"], *images, *unknown])


def _interval(values: dict, key: str, form: str) -> str:
    """Return "3.2 [3.0, 3.4]", with the 95 % interval if there is one."""
    low, high = values.get(f"{key}_low"), values.get(f"{key}_high")
    return f"{values[key]:{form}}" + ("" if low is None else f" [{low:{form}}, {high:{form}}]")


def _describe_context(result: dict, name: str, form: str) -> str:
    """Return what helps to judge a number: its error by the reference, and what real images score."""
    parts = []
    if error := result.get(f"{name}_reference_error"):
        parts.append(f"reference ± {error:.2g}")
    if (extrapolated := result.get(f"{name}_extrapolated")) is not None:
        parts.append(f"of infinitely many images {extrapolated:{form}}")
    if (subsets := result.get(f"{name}_subsets")) is not None:
        std = result[f"{name}_subsets_std"]
        parts.append(f"mean and std of {SUBSETS} subsets of {SUBSET_IMAGES:,} images {subsets:{form}} ± {std:.2g}")
    if f"{name}_real" in result:
        n, images = result.get(f"{name}_real_images"), "validation images"
        images = images if n is None else f"{n:,} real images of the other split"
        parts.append(f"{images} {_interval(result, f'{name}_real', form)}")
    if (threshold := result.get(f"{name}_threshold")) is not None:
        n = result["copied_validation_images"]
        many = f"1 % of new images are, or {'fewer' if threshold else 'more'}"
        few = f"validation images: {n}, too few to say how many new images are"
        parts.append(f"ratio up to {threshold:.2f}; {many if n * FALSE_ALARMS >= 1 else few}")
    return f" ({', '.join(parts)})" if parts else ""
