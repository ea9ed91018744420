"""Attention in bfloat16 on a CPU by batched products, as `train` computes it, against PyTorch's fused kernel.

First forward and backward passes of networks, where `float32` has the fused kernel, too, then of attention alone. The
ways take turns on the same inputs; a ratio above 1 is in favor of products. Errors are those of the gradient of the
query, random numbers, relative to its norm in float64.
"""

import statistics
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.measure import compose_config, format_interval, print_table
from diffusion_lit.networks.attention import BatchedAttention, attend_by_products
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
ALONE_HEADER = ["batch, heads, tokens, channels", "fused", "products", "ratio to fused", "error of fused, of products"]
ALONE = ((64, 4, 16, 32), (32, 5, 64, 32), (32, 3, 256, 64), (8, 4, 576, 32), (4, 4, 1024, 32))


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


def attend(inputs: torch.Tensor, is_fused: bool) -> tuple[float, torch.Tensor]:
    """Return the seconds of attention, forward and backward, and the gradient of the query."""
    query, key, value = (x.clone().requires_grad_() for x in inputs)
    start = time.perf_counter()
    out = (F.scaled_dot_product_attention if is_fused else attend_by_products)(query, key, value)
    out.backward(out.detach())
    return time.perf_counter() - start, query.grad


def measure_alone() -> Iterator[list[object]]:
    for shape in ALONE:
        inputs = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0)).bfloat16()
        exact = attend(inputs.double(), is_fused=True)[1]
        pairs = [(attend(inputs, is_fused=True), attend(inputs, is_fused=False)) for _ in range(ROUNDS + 1)][1:]
        seconds = [[way[0] for way in ways] for ways in zip(*pairs, strict=True)]
        errors = [((gradient - exact).norm() / exact.norm()).item() for _, gradient in pairs[-1]]
        medians = [f"{statistics.median(values) * 1e3:.1f} ms" for values in seconds]
        ratio = format_interval([fused / ours for fused, ours in zip(*seconds, strict=True)], "", 2)
        yield [", ".join(map(str, shape)), *medians, ratio, ", ".join(f"{error:.1%}" for error in errors)]


def main(arguments: Namespace) -> None:
    print_table(HEADER, measure_rows())
    print()
    print_table(ALONE_HEADER, measure_alone())
