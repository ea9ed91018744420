"""Hit rate and false alarms of the copies that `evaluate` finds: variants of training images among new images."""

import shlex
from argparse import Namespace
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import compose_config, print_table
from diffusion_lit.data.store import ImageStore, load_splits
from diffusion_lit.evaluation.features import RealImages
from diffusion_lit.evaluation.image_sets import make_reference
from diffusion_lit.evaluation.intervals import fixed_permutation, proportion_interval
from diffusion_lit.evaluation.metrics import Comparison

DIGITS = "data=digits"
MAX_IMAGES = 4_000
PLANTED, REPEATED, TIMES = 300, 20, 20  # variants of each kind; images that are in training so many times


def add_noise(images: Tensor, levels: float) -> Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + levels * noise).round().clamp(0, 255).to(torch.uint8)


def shift(images: Tensor, pixels: int) -> Tensor:
    """Move images to the right and repeat their left edge."""
    return torch.cat([images[..., :1].expand(*images.shape[:-1], pixels), images[..., :-pixels]], -1)


def brighten(images: Tensor) -> Tensor:
    """Scale the colors by 0.7, without alpha."""
    colors = images if images.shape[1] != 4 else images[:, :3]
    return torch.cat([(colors * 0.7).to(torch.uint8), images[:, colors.shape[1] :]], 1)


def rotate_channels(images: Tensor) -> Tensor:
    return torch.cat([images[:, :3].roll(1, 1), images[:, 3:]], 1)


VARIANTS: dict[str, Callable[[Tensor], Tensor]] = {
    "exact": lambda x: x,
    "noise of 4 levels": lambda x: add_noise(x, 4),
    "noise of 16 levels": lambda x: add_noise(x, 16),
    "noise of 32 levels": lambda x: add_noise(x, 32),
    "mirrored": lambda x: x.flip(-1),
    "colors times 0.7": brighten,
    "red, green, blue in another order": rotate_channels,
    "shifted by 1 pixel": lambda x: shift(x, 1),
    "shifted by 2 pixels": lambda x: shift(x, 2),
}


def load_images(overrides: str) -> tuple[Tensor, Tensor, dict, list[str]]:
    """Return images, labels, the `data` group and the class names of a data set, in random order."""
    config, source = compose_config(*shlex.split(overrides), "experiment=none")
    stores = [store for store in load_splits(source, config["data"]) if store]
    images = torch.cat([torch.from_numpy(np.array(store.images)) for store in stores])
    labels = torch.cat([torch.from_numpy(np.array(store.labels)) for store in stores])
    chosen = fixed_permutation(len(images))[:MAX_IMAGES]
    return images[chosen], labels[chosen], config["data"], [str(k) for k in range(config["data"]["num_classes"])]


def plant_copies(overrides: str) -> Iterator[list[object]]:
    """Train on 60 % of the images, choose the threshold with 20 %, and count false alarms among the other 20 %."""
    images, labels, data, names = load_images(overrides)
    cuts = [len(images) * 3 // 5, len(images) * 4 // 5]
    (training, val, new), (training_labels, val_labels, _) = images.tensor_split(cuts), labels.tensor_split(cuts)
    repeated = add_noise(training[:REPEATED].repeat(TIMES - 1, 1, 1, 1), 2)
    train = ImageStore(
        torch.cat([training, repeated]).numpy(),
        torch.cat([training_labels, training_labels[:REPEATED].repeat(TIMES - 1)]).numpy(),
    )
    val_store, flip = ImageStore(val.numpy(), val_labels.numpy()), data["flip"] > 0
    real = RealImages(train, val_store, len(names), flip, data["resample"], torch.device("cpu"))
    reference = make_reference(real, "classifier" if len(names) > 1 else "pixels", names, with_classifier=False)

    once = training[REPEATED : REPEATED + PLANTED]
    kinds = {name: make(once) for name, make in VARIANTS.items() if images.shape[1] > 1 or "red, " not in name}
    kinds["noise of 16 levels, 20 times in training"] = add_noise(training[:REPEATED].repeat(15, 1, 1, 1), 16)
    kinds["new: false alarms"] = new
    sizes = [len(x) for x in kinds.values()]
    copies = Comparison(reference, torch.cat([*kinds.values()]), [0] * sum(sizes)).copies
    found = [copies[space].is_copy for space in ("pixels", "features")]
    shares = [hits.split(sizes) for hits in (*found, found[0] | found[1])]
    for name, size, *hits in zip(kinds, sizes, *shares, strict=True):
        yield [name, size, *map(format_share, hits)]


def format_share(hits: Tensor) -> str:
    share, low, high = proportion_interval(hits)
    return f"{share:.1%} ({low:.1%} to {high:.1%})"


def main(arguments: Namespace) -> None:
    for overrides in [DIGITS, *(arguments.data or [])]:
        print_table([f"`{overrides}`", "images", "by pixels", "by features", "by either"], plant_copies(overrides))
        print(flush=True)
