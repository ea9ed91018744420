"""A forward and backward pass in bfloat16 on a CPU, with attention by batched products, as `train` computes it, against
PyTorch's fused kernel.

Both take turns on the same network and images. A ratio above 1 is in favor of products. `float32` is the same pass
in float32 with the fused kernel.
"""

import statistics
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import nn

from benchmarks.measure import compose_config, format_interval, print_table
from diffusion_lit.networks.attention import BatchedAttention
from diffusion_lit.runs.build import make_network

ROUNDS = 12
HEADER = ["", "tokens", "img/s in float32", "fused", "products", "ratio to fused"]
CASES = {  # name: (pixels, images, tokens of the finest attention, overrides)
    "DiT, 4.2 M, 32x32, patches of 4x4": (32, 32, 64, ("model=dit", "model.patch_size=4")),
    "DiT, 4.2 M, 32x32, patches of 2x2": (32, 16, 256, ("model=dit",)),
    "UNet, 1.6 M, 32x32": (32, 32, 64, ("model=unet_small",)),
    "UNet, 17 M, 32x32, prompts": (32, 8, 256, ("model=unet_text", "text_encoder=words", "data.labels=none")),
    "UNet, 1.6 M, 64x64": (64, 16, 64, ("model=unet_small",)),
}


def time_pass(net: nn.Module, inputs: tuple[torch.Tensor, ...], is_bfloat16: bool, is_fused: bool) -> float:
    """Return the seconds of a forward and backward pass."""
    start = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=is_bfloat16), nullcontext() if is_fused else BatchedAttention():
        loss = net(*inputs).float().square().mean()
    loss.backward()
    return time.perf_counter() - start


def measure_rows() -> Iterator[list[object]]:
    ways = {"float32": (False, True), "fused": (True, True), "products": (True, False)}
    for name, (pixels, count, tokens, overrides) in CASES.items():
        config, _ = compose_config("data=synthetic", f"data.image_size={pixels}", "data.channels=3", *overrides)
        net, images = make_network(config), torch.randn(count, 3, pixels, pixels)
        inputs = images, torch.rand(count) * 1000, torch.zeros(count, dtype=torch.int64)
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for k in range(ROUNDS + 1):
            for way in [*ways][:: -1 if k % 2 else 1]:
                seconds[way].append(time_pass(net, inputs, *ways[way]))
        seconds = {way: values[1:] for way, values in seconds.items()}  # the first round warms up
        ratios = [fused / ours for fused, ours in zip(seconds["fused"], seconds["products"], strict=True)]
        speeds = [f"{count / statistics.median(values):,.1f}" for values in seconds.values()]
        yield [name, tokens, *speeds, format_interval(ratios, "", 2)]


def main(arguments: Namespace) -> None:
    print_table(HEADER, measure_rows())
