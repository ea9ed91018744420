"""How much memory a run takes."""

import resource
import sys

import torch


def peak_memory_gib(device: torch.device) -> float:
    """The most that tensors took on a GPU, or else the most that this process took, since it began; in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
