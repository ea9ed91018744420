"""Distances of 50,000 generated to 50,000 real images with the 2,048 features of FID: seconds and memory after the
features."""

import time
from argparse import Namespace
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.measure import print_table, read_memory
from diffusion_lit.evaluation.distances import (
    extrapolated_frechet_distance,
    find_principal_components,
    frechet_distance,
    kernel_distance,
    measure_frechet_distance,
    project,
)
from diffusion_lit.evaluation.manifold import precision_recall

IMAGES, FEATURES = 50_000, 2_048


def make_features(seed: int, shift: float, scale: float) -> Tensor:
    """Return features above 0 whose spread falls as that of Inception's does, float32 (N, D)."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.arange(1, FEATURES + 1) ** -0.5
    return (torch.randn(IMAGES, FEATURES, generator=generator).mul_(scale).add_(shift).mul_(spread)).abs_()


def frechet_distance_64(x: Tensor, y: Tensor) -> float:
    basis = find_principal_components(y, 64)
    return frechet_distance(project(x, *basis), project(y, *basis)).value


CASES: dict[str, Callable[[Tensor, Tensor], object]] = {
    "FD": measure_frechet_distance,
    "FD with its interval": lambda x, y: frechet_distance(x, y).interval().value,
    "FD of infinitely many images, when FD is known": lambda x, y: extrapolated_frechet_distance(x, y, 0.0),
    "FD-64 with its interval": frechet_distance_64,
    "KID with its interval (10,000 real images)": lambda x, y: kernel_distance(x, y).value,
    "precision, recall, density, coverage": lambda x, y: precision_recall(x, y)["recall"],
}


def measure_rows() -> Iterator[list[str]]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, y = make_features(0, 0.1, 1.1).to(device), make_features(1, 0, 1).to(device)
    features = read_memory("VmRSS")
    for name, compute in CASES.items():
        start, cpu_start = time.perf_counter(), time.process_time()
        value = compute(x, y)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        if device == "cuda":
            memory = (torch.cuda.max_memory_allocated() - x.nbytes - y.nbytes) / 2**20
            torch.cuda.reset_peak_memory_stats()
        else:
            memory = read_memory("VmHWM") - features
        yield [name, f"{value:.4g}", f"{seconds:.1f} s", f"{cpu_seconds:.1f} s", f"{memory:,.0f} MiB"]


def main(arguments: Namespace) -> None:
    where = "the GPU" if torch.cuda.is_available() else f"{torch.get_num_threads()} threads"
    sets = f"{IMAGES:,} generated and real images, {FEATURES:,} features"
    header = [sets, "value", where, "CPU time", "peak memory so far beside the features"]
    print_table(header, measure_rows())
