"""The metrics of generated images on one process and on two, which hold parts of the images of unequal size."""

import json
from pathlib import Path

import torch
from torch import Tensor, distributed
from torchmetrics import MetricCollection

from diffusion_lit.evaluation.image_metrics import (
    ClassAccuracy,
    Copies,
    FrechetDistance,
    FrechetDistance64,
    KernelDistance,
    PrecisionRecall,
)

SEEDS = {"generated": (400, 0), "real": (450, 1), "validation": (120, 2)}
# rank -> images: one has no real images, the other no validation images
PARTS = {
    None: dict.fromkeys(SEEDS, slice(None)),
    0: {"generated": slice(250), "real": slice(None), "validation": slice(0)},
    1: {"generated": slice(250, None), "real": slice(0), "validation": slice(None)},
}


def extract(images: Tensor) -> Tensor:
    return images.flatten(1).double()


def classify(images: Tensor) -> Tensor:
    return (images[:, 0, 0, 0] > 0).long()


def draw(name: str) -> Tensor:
    n, seed = SEEDS[name]
    images = torch.randn(n, 1, 7, 10, generator=torch.Generator().manual_seed(seed))
    if name == "generated":  # with copies
        images[:30] = draw("real")[:30]
    return images


def measure(rank: int | None) -> dict:
    """Return the numbers of the images of a rank, or of all."""
    images = {name: draw(name)[part] for name, part in PARTS[rank].items()}
    labels = (torch.arange(400) % 2)[PARTS[rank]["generated"]]
    distances = [metric(extract) for metric in (KernelDistance, FrechetDistance, FrechetDistance64)]
    others = [PrecisionRecall(extract), Copies(extract), ClassAccuracy(classify)]
    collection = MetricCollection([*distances, *others])
    for name, is_real in (("generated", False), ("real", True)):
        if len(images[name]):
            collection.update(images=images[name], real=is_real, labels=labels)
    if len(images["validation"]):
        collection["Copies"].update(images["validation"], real=True, validation=True)
    found = {name: value.tolist() for name, value in collection.compute().items()}
    for metric in distances[:2]:
        measured = collection[type(metric).__name__].measure()
        found[f"{type(metric).__name__} influences"] = [*measured.generated.tolist(), *measured.real.tolist()]
    found["precision"] = collection["PrecisionRecall"].measure()["precision"]
    is_copy, threshold, _ = collection["Copies"].measure()
    found |= {"copies": is_copy.tolist(), "threshold": threshold}
    found["correct"] = collection["ClassAccuracy"].measure().tolist()
    return found


def run_rank(rank: int, folder: str) -> None:
    """Measure on one of two processes, and write its numbers."""
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    Path(folder, f"{rank}.json").write_text(json.dumps(measure(rank)))
    distributed.destroy_process_group()
