"""Images on a GPU: a small set is kept there as uint8, other batches are copied without waiting."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffusion_lit.data.store import ImageStore
from diffusion_lit.data.streaming import StreamedStore

MAX_SHARE = 0.1  # of the free memory of a GPU that the images may take
CHUNK = 4096  # images that are copied at a time


@dataclass(frozen=True)
class DeviceImages:
    """Images and labels on a device.

    Args:
        images: uint8 (N, C, H, W).
        labels: int64 (N,).
    """

    images: Tensor
    labels: Tensor

    def gather(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the images at `index`, int64 (B,), their labels, and the index on the device."""
        index = copy_to_device(index, self.images.device)
        return self.images[index], self.labels[index], index


def place_on_device(store: ImageStore, device: torch.device) -> DeviceImages:
    """Return a copy of all images and labels of a store on a device."""
    images = torch.empty(store.images.shape, dtype=torch.uint8, device=device)
    for start in range(0, len(store), CHUNK):
        images[start : start + CHUNK] = torch.from_numpy(np.array(store.images[start : start + CHUNK]))
    return DeviceImages(images, torch.from_numpy(store.labels).to(device))


def fits_on_device(store: ImageStore | StreamedStore, device: torch.device | None) -> bool:
    """Return whether the images of a store take at most `MAX_SHARE` of the free memory of a CUDA device."""
    if device is None or device.type != "cuda" or not isinstance(store, ImageStore):
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return store.images.nbytes <= MAX_SHARE * free


def copy_to_device(tensor: Tensor, device: torch.device | None) -> Tensor:
    """Return a CPU tensor on a device. On CUDA the copy is from pinned memory, so that the CPU does not wait for it."""
    if device is None:
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
