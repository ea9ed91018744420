"""The CIFAR-10 recipe (35.7 M parameters) on one GPU, the fastest way first, in at most ten minutes.

Every row is printed as soon as it is measured, and one that fails says why and ends no other. Speeds are those of runs
with all their callbacks. A share is that of the operations that this card reaches in a product of large matrices: in
bfloat16, or in TF32 for rows in float32, whose convolutions use it. With --debug, and where there is no GPU, a tiny
network takes a few steps, to see that everything runs.
"""

import copy
import json
import os
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from omegaconf import OmegaConf
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import compose_config, print_table, require_script, save_blurred_noise
from benchmarks.peers import time_steps
from benchmarks.window import NEVER, Window, count_synchronizations, run_window
from diffusion_lit.config.groups import read_option
from diffusion_lit.networks.compilation import compile_network
from diffusion_lit.runs.build import make_network
from diffusion_lit.runs.fast_sampling import speed_up
from diffusion_lit.runs.load import TrainedModel
from diffusion_lit.training.benchmark import synchronize

BUDGET = 600  # seconds; rows whose turn comes later are left out
RECIPE = ("experiment=cifar10_cond", "data=synthetic", "data.channels=3", "data.num_classes=10")
LARGE = ("data.num_images=50000", "data.image_size=32")
TINY = (
    "data.num_images=64", "data.image_size=8", "model.block_out_channels=[8,8]", "model.norm_num_groups=4",
    "model.attention_head_dim=8",
    "model.attention_levels=[]", "model.layers_per_block=1",
)  # fmt: skip
COMPILED = {"precision": "bf16-mixed", "channels_last": True, "compile": True}
GRAPHS = COMPILED | {"compile": "reduce-overhead"}
FAST = COMPILED | {"compile": False}
PLAIN = {"precision": "32-true", "channels_last": False, "compile": False}
CASES = (  # name, strategy, batch
    ("bf16, channels_last, compile", COMPILED, 128),
    ("bf16, channels_last, CUDA graphs", GRAPHS, 128),
    ("bf16, channels_last", FAST, 128),
    ("bf16", FAST | {"channels_last": False}, 128),
    ("float32", PLAIN, 128),
    ("fp16, channels_last", FAST | {"precision": "16-mixed"}, 128),
    ("bf16, channels_last", FAST, 512),
    ("bf16, channels_last", FAST, 16),
)
MORE_CASES = (  # each compiles for a minute, so they come last
    ("bf16, channels_last, CUDA graphs", GRAPHS, 16),
    ("bf16, channels_last, compile", COMPILED, 512),
)


class Setup(NamedTuple):
    """What all rows share: the recipe, the device, whether only a few steps are made, and when the time is over."""

    config: dict
    source: object
    device: torch.device
    is_debug: bool
    deadline: float

    def with_strategy(self, strategy: dict, batch: int) -> dict:
        return self.config | {"strategy": self.config["strategy"] | strategy, "global_batch_size": batch}

    def window(self, steps: int, measure=None) -> Window:
        first, steps = (1, 2) if self.is_debug else (20, steps)
        return Window(first, first + steps, *([measure] if measure else []))


def make_setup(is_debug: bool, home: Path) -> Setup:
    is_debug = is_debug or not torch.cuda.is_available()
    sizes = TINY if is_debug else LARGE
    overrides = (*RECIPE, *sizes, *NEVER, f"data.cache_dir={home / 'cache'}", "log_every=50")
    config, source = compose_config(*overrides)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Setup(config, source, device, is_debug, time.monotonic() + BUDGET)


def print_rows(header: list[str], rows: dict[str, Callable[[], list[object]]], deadline: float) -> None:
    """Print a table of the rows that the functions return; a failure is a row too."""

    def measure() -> Iterator[list[object]]:
        for name, row in rows.items():
            torch.compiler.reset()  # networks compiled before count towards a limit, after which none is compiled
            try:
                yield [name, *row()] if time.monotonic() < deadline else [name, "not measured: the time is over"]
            except (Exception, SystemExit) as error:
                lines = str(error).strip().splitlines() or [""]
                yield [name, f"failed: {type(error).__name__}: {lines[0][:200]}"]

    print_table(header, measure())
    print(flush=True)


# ---------------------------------------------------------------------------------------------- arithmetic


def count_flops(config: dict) -> float:
    """Return the floating-point operations of one image, forward and backward."""
    data, net = config["data"], make_network(config)
    x = torch.zeros(2, data["channels"], data["image_size"], data["image_size"])
    with FlopCounterMode(display=False) as counter:
        net(x, torch.zeros(2), torch.zeros(2, dtype=torch.int64)).sum().backward()
    return counter.get_total_flops() / 2


def measure_peak(setup: Setup, dtype: torch.dtype, precision: str = "highest") -> float:
    """Return the operations per second of a product of two large matrices, the best of some."""
    size, repeats = (64, 2) if setup.is_debug else (8192, 30)
    a = torch.randn(size, size, device=setup.device, dtype=dtype)
    before, best = torch.get_float32_matmul_precision(), float("inf")
    torch.set_float32_matmul_precision(precision)
    try:
        for _ in range(repeats):
            synchronize(setup.device)
            start = time.perf_counter()
            a @ a
            synchronize(setup.device)
            best = min(best, time.perf_counter() - start)
    finally:
        torch.set_float32_matmul_precision(before)
    return 2 * size**3 / best


def measure_peaks(setup: Setup) -> dict[str, float]:
    """Return the peaks by name. On a CPU TF32 is float32."""
    kinds = {"bf16": (torch.bfloat16,), "TF32": (torch.float32, "high"), "strict float32": (torch.float32,)}
    return {name: measure_peak(setup, *kind) for name, kind in kinds.items()}


# ---------------------------------------------------------------------------------------------- training


def measure_training(setup: Setup, strategy: dict, batch: int, flops: float, peaks: dict[str, float]) -> list[object]:
    window = setup.window(min(500, max(50, 40_000 // batch)))
    run_window(setup.with_strategy(strategy, batch), setup.source, window)
    rate, name = window.steps_per_second * batch, "TF32" if strategy["precision"] == "32-true" else "bf16"
    share = f"{rate * flops / peaks[name]:.0%} of {name}"
    return [f"{rate:,.0f}", share, f"{window.memory:.1f} GiB", f"{window.loss:.4f}"]


def training_rows(setup: Setup, cases, flops: float, peaks: dict[str, float]) -> dict[str, Callable[[], list[object]]]:
    rows = {}
    for name, strategy, batch in cases:
        needs_gpu = strategy["compile"] or strategy["precision"] == "16-mixed"
        if setup.device.type == "cuda" or not needs_gpu:
            size = batch // 16 if setup.is_debug else batch
            rows[f"{name}, {size}"] = partial(measure_training, setup, strategy, size, flops, peaks)
    return rows


def profile_steps(setup: Setup) -> list[object]:
    """Return kernels (on a CPU operators) of a step, and the share of the time in which the GPU has nothing to do."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if setup.device.type == "cuda" else [])]
    window = setup.window(10, partial(profile, activities=activities))
    events = run_window(setup.with_strategy(FAST, 128), setup.source, window).result.events()
    if setup.device.type == "cuda":
        events = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
        idle = f"{1 - sum(event.self_device_time_total for event in events) / 1e6 / window.seconds:.0%} idle"
    else:
        events, idle = [event for event in events if event.name.startswith("aten::")], "no GPU"
    return [f"{len(events) / (window.last - window.first):,.0f}, {idle}"]


def count_training_synchronizations(setup: Setup) -> list[object]:
    if setup.device.type != "cuda":
        return ["no GPU"]
    window = setup.window(20, count_synchronizations)
    found = run_window(setup.with_strategy(FAST, 128), setup.source, window).result
    return [f"{len(found)} in {window.last - window.first} steps"]


def compare_equal_runs(setup: Setup, strategy: dict) -> list[object]:
    """Return whether weights and EMA of two runs with one seed are equal, and their largest difference."""
    states = []
    for _ in range(2):
        window = run_window(setup.with_strategy(strategy, 128), setup.source, Window(1, 3 if setup.is_debug else 50))
        states.append({name: value.cpu() for name, value in window.module.state_dict().items()})
    one, other = states
    difference = max((one[name].double() - other[name].double()).abs().max().item() for name in one)
    return ["equal bits" if difference == 0 else f"differ by {difference:.1e}"]


# ---------------------------------------------------------------------------------------------- the network alone


def measure_network(setup: Setup, is_compiled: bool = False, wrap: Callable[[nn.Module], nn.Module] = lambda net: net):
    """Return images per second of forward and backward passes on one batch, in bfloat16."""
    data, batch = setup.config["data"], 8 if setup.is_debug else 128
    net = make_network(setup.config).to(setup.device).to(memory_format=torch.channels_last)
    if is_compiled:
        compile_network(net)
    net = wrap(net)
    x = torch.randn(batch, data["channels"], data["image_size"], data["image_size"], device=setup.device)
    t, y = torch.rand(batch, device=setup.device), torch.zeros(batch, dtype=torch.int64, device=setup.device)

    def step() -> None:
        with torch.autocast(setup.device.type, torch.bfloat16):
            out = net(x, t, y)
        out.float().square().mean().backward()
        net.zero_grad(set_to_none=True)

    warm_up, repeats = (1, 2) if setup.is_debug else (10, 100)
    for _ in range(warm_up):
        step()
    synchronize(setup.device)
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    synchronize(setup.device)
    return [f"{batch * repeats / (time.perf_counter() - start):,.0f}"]


def measure_ddp(setup: Setup) -> list[object]:
    """Measure the network in DistributedDataParallel of one process."""
    from torch import distributed

    backend = "nccl" if setup.device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1)
    try:
        return measure_network(setup, wrap=partial(nn.parallel.DistributedDataParallel, gradient_as_bucket_view=True))
    finally:
        distributed.destroy_process_group()


# ---------------------------------------------------------------------------------------------- sampling


def measure_sampling(setup: Setup, precision: str, is_compiled: bool, batch: int) -> list[object]:
    """Return images per second of DDIM with 10 evaluations, after a batch that warms up."""
    batch, steps = (4, 2) if setup.is_debug else (batch, 10)
    module = build_module(setup)
    sampler = read_option("sampler", "ddim") | {"steps": steps, "batch_size": batch}
    model = TrainedModel.from_module(module, sampler)
    model.config = {"sampler": sampler}
    model = speed_up(model, OmegaConf.create({"precision": precision, "compile": is_compiled}), batch)
    model.generate([0] * batch, range(batch))
    count = batch if setup.is_debug else 8 * batch
    start = time.perf_counter()
    model.generate([0] * count, range(count))
    return [f"{count / (time.perf_counter() - start):,.0f}"]


def build_module(setup: Setup) -> nn.Module:
    from diffusion_lit.training.build_run import make_module

    return copy.deepcopy(make_module(setup.config)).to(setup.device).eval()


# ---------------------------------------------------------------------------------------------- diffusers' script


def measure_script(setup: Setup, script: Path | None, home: Path, is_compiled: bool) -> list[object]:
    """Return images per second of train_unconditional.py in bfloat16 with workers, and compiled by accelerate."""
    path, batch, last = require_script(script), 128, 40 if setup.is_debug else 200
    images, network = home / "images", home / "network"
    if not images.exists():
        save_blurred_noise(images, 128 if setup.is_debug else 10_000, 32, "png")
    network.mkdir(exist_ok=True)
    classes = {"num_class_embeds": None, "class_embed_type": None, "_class_name": "UNet2DModel"}
    config = dict(make_network(setup.config).unet.config) | classes
    (network / "config.json").write_text(json.dumps(config), encoding="utf-8")
    arguments = [
        "--train_data_dir", images, "--model_config_name_or_path", network, "--resolution", 32, "--random_flip",
        "--train_batch_size", batch, "--use_ema", "--mixed_precision", "bf16", "--dataloader_num_workers", 8,
        "--num_epochs", 1000, "--save_images_epochs", 100000, "--save_model_epochs", 100000, "--eval_batch_size", 1,
        "--ddpm_num_inference_steps", 1, "--checkpointing_steps", 100000, "--output_dir", tempfile.mkdtemp(dir=home),
    ]  # fmt: skip
    before = dict(os.environ)
    os.environ |= {"ACCELERATE_DYNAMO_BACKEND": "inductor"} if is_compiled else {}
    try:
        times = time_steps(last, "file", path, *arguments)
    finally:
        os.environ.clear()
        os.environ |= before
    return [f"{batch * (last - last // 2) / (times[last] - times[last // 2]):,.0f}"]


# ---------------------------------------------------------------------------------------------- all of it


def main(arguments: Namespace) -> None:
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        setup = make_setup(arguments.debug, home)
        print(torch.cuda.get_device_name() if setup.device.type == "cuda" else "no GPU: a tiny network", flush=True)
        flops, peaks = count_flops(setup.config), measure_peaks(setup)
        print(", ".join(f"{value / 1e12:,.1f} TFLOP/s in {kind}" for kind, value in peaks.items()), "\n", flush=True)
        header = ["training, batch", "img/s", "share of the peak", "memory", "last loss"]
        print_rows(header, training_rows(setup, CASES, flops, peaks), setup.deadline)
        has_gpu = setup.device.type == "cuda"
        rows = {"bf16, compile, 256": ("bf16-mixed", True, 256)} if has_gpu else {}
        rows |= {"bf16, 256": ("bf16-mixed", False, 256), "32-true, 256": ("32-true", False, 256)}
        rows |= {"32-true, 64": ("32-true", False, 64)}
        sampling = {key: partial(measure_sampling, setup, *values) for key, values in rows.items()}
        print_rows(["sampling, 10 evaluations, batch", "img/s"], sampling, setup.deadline)
        network = {"network alone, compile": partial(measure_network, setup, is_compiled=True)} if has_gpu else {}
        network |= {
            "network alone": partial(measure_network, setup),
            "in DDP of one process": partial(measure_ddp, setup),
        }
        print_rows(["bf16, channels_last, forward and backward", "img/s"], network, setup.deadline)
        facts = {
            "kernels of a step, GPU": partial(profile_steps, setup),
            "waits of the CPU for the GPU": partial(count_training_synchronizations, setup),
            "50 steps twice with one seed": partial(compare_equal_runs, setup, FAST),
        }
        facts |= {"the same, compiled": partial(compare_equal_runs, setup, COMPILED)} if has_gpu else {}
        print_rows(["bf16, channels_last, batch 128", ""], facts, setup.deadline)
        script = partial(measure_script, setup, arguments.script, home)
        peers = {"bf16, compile": partial(script, is_compiled=True)} if has_gpu else {}
        peers |= {"bf16": partial(script, is_compiled=False)}
        print_rows(["diffusers' train_unconditional.py, batch 128", "img/s"], peers, setup.deadline)
        if has_gpu:
            print_rows(header, training_rows(setup, MORE_CASES, flops, peaks), setup.deadline)
