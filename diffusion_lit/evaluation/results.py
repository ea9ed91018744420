"""An evaluation as words and as a picture."""

import torch
from PIL import Image

from diffusion_lit.evaluation.metrics import Evidence
from diffusion_lit.imaging.grids import grid

ROWS, SHOWN = 12, 3  # images of the panel, and the neighbours of each
CLASSES = 20  # that are printed


def panel(e: Evidence) -> Image.Image:
    """The generated images that are most like a copy, each beside its nearest training images, by pixels and then by
    features; the number is the distance to the first over that to the 50 nearest, below 1/3 is a copy.
    """
    by_pixels, by_features = e.neighbours["pixels"], e.neighbours["features"]
    order = by_pixels.ratio.argsort()[:ROWS]
    nearest = [ways.index[order, :SHOWN] for ways in e.neighbours.values()]
    columns = torch.cat([e.generated.images[order, None], *[e.training.images[index] for index in nearest]], 1)
    names = [f"{by_pixels.ratio[k]:.2f} {by_features.ratio[k]:.2f}" for k in order]
    title = f"generated, {SHOWN} nearest by pixels, {SHOWN} by features"
    return grid(columns.flatten(0, 1), columns.shape[1], names, title)


def lines(result: dict, per_class: list[dict]) -> list[str]:
    """What `evaluate` prints: of what, by what, and then the numbers that there are, also of the first classes."""
    settings = result["settings"]
    features, reference, sampler = settings["features"], settings["reference"], settings["sampler"]
    guidance = "" if settings["guidance_scale"] is None else f", guidance scale {settings['guidance_scale']:g}"
    known = [f"{name.replace('_', ' ')} {value:.1%}" for name, value in features.items() if isinstance(value, float)]
    told = [
        f"evaluated  {result['num_images']:,} images of {settings['checkpoint']}, {settings['weights']}, seed "
        f"{settings['seed']}; {sampler['name']}, NFE {result['nfe']:g}{guidance}",
        f"features   {features['name']} ({', '.join([features['digest'], *known])}); reference {reference['split']}, "
        f"{reference['images']:,} images",
    ]
    names = {"fd": "FID" if features["name"] == "inception" else "FD", "kid": "KID"}
    names |= {name: name for name in ("precision", "recall", "density", "coverage")}
    for key, name in names.items():
        if key in result:
            told.append(f"{name:<10} {_interval(result, key)}{_floor(result, key)}")
    if "class_accuracy" in result:
        real = result.get("class_accuracy_real")
        beside = "" if real is None else f" (real held-out ones: {real:.1%})"
        told.append(f"judged     {_interval(result, 'class_accuracy', '.1%')} are the class asked for{beside}")
    if "copied_pixels" in result:
        for how in ("pixels", "features"):
            held_out = f"copied_held_out_{how}"
            beside = f" (held-out ones: {_interval(result, held_out, '.1%')})" if held_out in result else ""
            told.append(f"copied     {_interval(result, f'copied_{how}', '.1%')} by {how}{beside}")
    if "colors" in result:
        told.append(f"colors     histograms {result['color_distance']:.1f} of 255 levels apart")
    for row in per_class[:CLASSES]:
        values = [
            f"{key} {_interval(row, key, form)}"
            for key, form in (("class_accuracy", ".1%"), ("kid", ".4g"))
            if key in row
        ]
        told.append(f"  {row['class'][:20]:<20} {row['images']:>6,} images  {'  '.join(values)}")
    more = len(per_class) - CLASSES
    return told + ([f"  and {more} more classes in result.json"] if more > 0 else [])


def _interval(values: dict, key: str, form: str = ".4g") -> str:
    """ "3.2 [3.0, 3.4]", the 95 % interval."""
    low, high = values[f"{key}_low"], values[f"{key}_high"]
    return f"{values[key]:{form}} [{low:{form}}, {high:{form}}]"


def _floor(result: dict, key: str) -> str:
    """What real images of the other split score; FD's bias depends on how many these are."""
    if key == "fd":
        unbiased = f"; less its bias {result['fd_unbiased']:.4g}"
        if "fd_floor" not in result:
            return unbiased
        floor, less, n = (result[f"fd_floor{end}"] for end in ("", "_unbiased", "_images"))
        return f"{unbiased}; real ones of the other split ({n:,}): {floor:.4g}, less its bias {less:.4g}"
    return f"; real ones of the other split: {_interval(result, 'kid_floor')}" if f"{key}_floor" in result else ""
