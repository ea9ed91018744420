"""An evaluation as text and as an image."""

import torch
from PIL import Image

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
    names = {"fd": "FID" if features["name"] == "inception" else "FD", "kid": "KID"}
    names |= {name: name for name in ("precision", "recall", "density", "coverage")}
    lines += [
        f"{name:<10} {_interval(result, key)}{_floor(result, key)}" for key, name in names.items() if key in result
    ]
    if "class_accuracy" in result:
        real = result.get("class_accuracy_real")
        real = "" if real is None else f" (validation images {real:.1%})"
        lines.append(f"accuracy   {_interval(result, 'class_accuracy', '.1%')} classified as requested{real}")
    for space in ("pixels", "features"):
        if f"copied_{space}" in result:
            val = f"copied_val_{space}"
            val = f" (validation images {_interval(result, val, '.1%')})" if val in result else ""
            lines.append(f"copied     {_interval(result, f'copied_{space}', '.1%')} by {space}{val}")
    if "colors" in result:
        lines.append(f"colors     histograms {result['color_distance']:.1f} of 255 levels apart")
    for row in per_class[:PRINTED_CLASSES]:
        formats = {"class_accuracy": ".1%", "kid": ".4g"}
        values = "  ".join(f"{key} {_interval(row, key, form)}" for key, form in formats.items() if key in row)
        lines.append(f"  {row['class'][:20]:<20} {row['images']:>6,} images  {values}")
    if len(per_class) > PRINTED_CLASSES:
        lines.append(f"  {len(per_class) - PRINTED_CLASSES} more classes in result.json")
    return lines


def _interval(values: dict, key: str, form: str = ".4g") -> str:
    """Return "3.2 [3.0, 3.4]", with the 95 % interval."""
    low, high = values[f"{key}_low"], values[f"{key}_high"]
    return f"{values[key]:{form}} [{low:{form}}, {high:{form}}]"


def _floor(result: dict, key: str) -> str:
    """Return what real images of the other split score; the bias of FD depends on their number."""
    if key == "fd":
        unbiased = f", without bias {result['fd_unbiased']:.4g}"
        if "fd_floor" not in result:
            return unbiased
        floor, less, n = (result[f"fd_floor{suffix}"] for suffix in ("", "_unbiased", "_images"))
        return f"{unbiased} ({n:,} real images of the other split {floor:.4g}, without bias {less:.4g})"
    has_floor = f"{key}_floor" in result
    return f" (real images of the other split {_interval(result, f'{key}_floor')})" if has_floor else ""
