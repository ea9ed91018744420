"""Which devices multiply bfloat16 fast, in training and in sampling."""

import torch

from diffusion_lit.runs import fast_sampling
from diffusion_lit.system.bfloat16 import DeviceFacts, choose_precision, inspect_device
from diffusion_lit.training import precision
from tests.cases import each


@each(
    ("facts", "training", "sampling"),
    [
        (DeviceFacts("cpu", flags=frozenset({"avx512_bf16", "amx_bf16"})), "bf16-mixed", "bf16-mixed"),
        (DeviceFacts("cpu", flags=frozenset({"avx512_bf16"})), "32-true", "bf16-mixed"),
        (DeviceFacts("cpu", flags=frozenset({"avx2"})), "32-true", "32-true"),
        (DeviceFacts("cpu"), "32-true", "32-true"),  # a system that lists no flags
        (DeviceFacts("cuda", (7, 5)), "32-true", "32-true"),
        (DeviceFacts("cuda", (8, 0)), "bf16-mixed", "bf16-mixed"),
        (DeviceFacts("cuda", (12, 0)), "bf16-mixed", "bf16-mixed"),
        (DeviceFacts("mps"), "32-true", "32-true"),
    ],
)
def test_auto_is_bf16_where_the_device_multiplies_it_fast(facts, training, sampling):
    assert choose_precision(facts, precision.FAST_FLAGS)[0] == training
    assert choose_precision(facts, fast_sampling.FAST_FLAGS)[0] == sampling


def test_the_lowest_capability_of_several_devices_decides(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda k: [(9, 0), (7, 5)][k])
    assert inspect_device("auto") == DeviceFacts("cuda", (7, 5))
    assert inspect_device("cpu").kind == "cpu"
