"""Batches that are made on a device are those that the CPU makes; a CPU stands in for the device."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from diffusion_lit.data import batches as batches_module
from diffusion_lit.data import device_images
from diffusion_lit.data.batches import Batches, ValidationBatches
from diffusion_lit.data.device_images import copy_to_device, fits_on_device
from diffusion_lit.data.store import ImageStore, select_rows
from tests.cases import each

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def make_store(count: int = 10) -> ImageStore:
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (count, 3, 6, 6), dtype=np.uint8), random.integers(0, 5, count)
    store = ImageStore(images, labels, hashes=np.arange(count, dtype=np.uint64))
    return select_rows(store, np.array([k for k in range(count) if k != 3]))  # as training images are


def take(batches, count: int) -> list[dict]:
    iterator = iter(batches)
    return [next(iterator) for _ in range(count)]


def assert_equal_batches(one: list[dict], other: list[dict]) -> None:
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for key, value in a.items():
            assert torch.equal(value, b[key]) if torch.is_tensor(value) else value == b[key]
            assert not torch.is_tensor(value) or value.dtype == b[key].dtype


@each("settings, is_kept", [
    ({}, True),
    ({"accumulate": 2, "rank": 1, "world": 2, "flip": 0.5}, True),
    ({"image_size": 4}, False),  # random crops
    ({"transforms": [v2.RandomVerticalFlip()]}, False),
])  # fmt: skip
def test_batches_on_a_device_are_those_of_the_cpu(monkeypatch, settings, is_kept):
    monkeypatch.setattr(batches_module, "fits_on_device", lambda store, device: device is not None)
    monkeypatch.setattr(device_images, "CHUNK", 4)
    store = make_store()
    on_device = Batches(store, 7, 4, lambda: 3, device=CPU, **settings)
    assert_equal_batches(take(on_device, 6), take(Batches(store, 7, 4, lambda: 3, **settings), 6))  # over three epochs
    assert (on_device.on_device is not None) == is_kept


def test_validation_batches_on_a_device_are_those_of_the_cpu():
    store = make_store()
    assert_equal_batches([*ValidationBatches(store, 20, device=CPU)], [*ValidationBatches(store, 20)])


def test_images_are_kept_that_take_a_small_share_of_the_free_memory(monkeypatch):
    store, free = make_store(), 10 * 9 * 3 * 6 * 6
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**12))
    assert fits_on_device(store, CUDA)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free - 1, 10**12))
    assert not fits_on_device(store, CUDA)
    assert not fits_on_device(store, None)
    assert not fits_on_device(store, CPU)


class Pinnable:
    """A tensor as far as a copy sees it, since there may be no GPU."""

    def __init__(self, calls: list):
        self.calls = calls

    def pin_memory(self):
        self.calls.append("pin")
        return self

    def to(self, device, non_blocking=False):
        self.calls.append((device, non_blocking))
        return self


@pytest.mark.parametrize(("device", "calls"), [(CUDA, ["pin", (CUDA, True)]), (CPU, [(CPU, False)]), (None, [])])
def test_no_copy_to_a_gpu_is_from_pageable_memory(device, calls):
    seen = []
    copy_to_device(Pinnable(seen), device)
    assert seen == calls
