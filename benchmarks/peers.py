"""Training speed against diffusers' train_unconditional.py with the same UNet, batch, optimizer, EMA and images.

Both compute in float32 where a row does not say otherwise.

Each program is a process of its own; they run in turns. From the 5th optimizer step to the last everything counts:
decoding, augmentation, forward and backward, optimizer, EMA, logging. The time until the 5th step, in which
diffusion_lit decodes the images, is a column of its own.
"""

import json
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.measure import (
    compose_config,
    format_interval,
    median_interval,
    print_table,
    require_script,
    save_blurred_noise,
)
from diffusion_lit.runs.build import make_network

ROUNDS, FIRST, BATCH = 6, 4, 64  # six: the range is then the 95 % interval of the median
HEADER = ["", "img/s here", "img/s there", "ratio", "until the 5th step: here, there"]
CLOCK = """
import json, os, runpy, sys, time
from torch.optim.optimizer import register_optimizer_step_post_hook
last, then, kind, name, *sys.argv = sys.argv[1:]
sys.argv.insert(0, name)
times = [time.perf_counter()]
def record_step(*_):
    times.append(time.perf_counter())
    if len(times) == int(last) + 1:
        print("seconds", json.dumps([t - times[0] for t in times]), flush=True)
        if then == "stop":
            os._exit(0)
register_optimizer_step_post_hook(record_step)
run, more = (runpy.run_module, {"alter_sys": True}) if kind == "module" else (runpy.run_path, {})
run(name, run_name="__main__", **more)
"""
SMALL = (
    "model.block_out_channels=[8,16,16]", "model.norm_num_groups=4", "model.layers_per_block=1",
    "model.attention_levels=[]", "model.middle_attention=false",
)  # fmt: skip
LARGE = ("model.block_out_channels=[64,128,128]", "model.layers_per_block=1")
AS_IT_COMES = "strategy.precision=auto"  # the default of `train`; that of the script is float32
CASES = {  # name: (image files, their size, training size, more overrides, last step)
    "1.1 M, 32x32, each in its default precision": (2_000, 32, 32, ("model.layers_per_block=1", AS_IT_COMES), 20),
    "1.1 M, 64x64, each in its default precision": (640, 64, 64, ("model.layers_per_block=1", AS_IT_COMES), 8),
    "1.1 M, 64x64": (640, 64, 64, ("model.layers_per_block=1",), 8),
    "1.1 M, 32x32": (2_000, 32, 32, ("model.layers_per_block=1",), 20),
    "4.4 M, 32x32": (2_000, 32, 32, LARGE, 12),
    "0.07 M, photos of 500 px at 64x64": (640, 500, 64, SMALL, 20),
    "0.07 M, photos of 1024 px at 64x64": (640, 1024, 64, SMALL, 20),
}


def run_steps(last: int, *command: object, then: str = "stop") -> tuple[list[float], str]:
    """Run a program and return seconds from its start to the end of its optimizer steps 0 (none), 1, ... `last`.

    The command is "module" or "file", its name, and its arguments. The program ends there unless `then` is "go on".

    Returns:
        The seconds, and what the program printed.
    """
    line = [sys.executable, "-c", CLOCK, str(last), then, *map(str, command)]
    done = subprocess.run(line, capture_output=True, text=True)
    if "seconds" not in done.stdout:
        sys.exit(f"{' '.join(line[3:])} failed:\n{done.stdout[-1000:]}{done.stderr[-3000:]}")
    return json.loads(done.stdout.rpartition("seconds ")[2].splitlines()[0]), done.stdout + done.stderr


def time_steps(last: int, *command: object, then: str = "stop") -> list[float]:
    """Return the seconds of `run_steps`."""
    return run_steps(last, *command, then=then)[0]


def train_overrides(root: Path, size: int, network: tuple[str, ...]) -> list[str]:
    """Return the overrides of a `train` that does what the other programs do: no classes, epsilon, one rate."""
    data = ["data=image_folder", f"data.root={root}", "data.labels=none", f"data.image_size={size}", "data.channels=3"]
    recipe = ["data.flip=0.5", "model=unet_small", "diffusion=ddpm", "weighting=uniform"]
    length = ["val_every=0", "sample_every=0", "checkpoint_every=100000", "max_steps=100"]
    recipe += ["optimizer.lr=0.0001", f"global_batch_size={BATCH}", "strategy.precision=32-true", *network]
    return [*data, *recipe, *length]


def script_arguments(root: Path, network, home: Path) -> list[object]:
    """Return arguments of the script for the same images, network and batch.

    It always samples images after its first epoch, here one image in one step.
    """
    home.mkdir(exist_ok=True)
    config = dict(network.config) | {"_class_name": "UNet2DModel"}
    (home / "config.json").write_text(json.dumps(config), encoding="utf-8")
    model = ["--train_data_dir", root, "--model_config_name_or_path", home, "--train_batch_size", BATCH, "--use_ema"]
    never = ["--center_crop", "--save_images_epochs", 100000, "--save_model_epochs", 100000]
    return [*model, *never, "--eval_batch_size", 1, "--ddpm_num_inference_steps", 1]


def compare(name: str, overrides: list[str], other: Callable[[Path], list[object]], home: Path, last: int) -> list[str]:
    """Run `train` and another program in turns; `other` returns its file and arguments for a new output folder."""
    before, rates = ([], []), ([], [])
    for _ in range(ROUNDS):
        folder = Path(tempfile.mkdtemp(dir=home))
        commands = (
            ("module", "diffusion_lit.train", *overrides, f"run_dir={folder / 'run'}"),
            ("file", *other(folder / "other")),
        )
        for k, command in enumerate(commands):
            times = time_steps(last, *command)
            before[k].append(times[FIRST])
            rates[k].append(BATCH * (last - FIRST) / (times[last] - times[FIRST]))
    ratio = format_interval([here / there for here, there in zip(*rates, strict=True)], "", 2)
    medians = [f"{median_interval(values)[0]:,.1f}" for values in rates]
    return [name, *medians, ratio, ", ".join(f"{median_interval(values)[0]:.0f} s" for values in before)]


def measure_rows(script: str, home: Path) -> Iterator[list[str]]:
    for name, (count, pixels, size, network, last) in CASES.items():
        root = home / f"images-{pixels}"
        if not root.exists():
            save_blurred_noise(root, count, pixels, "png" if pixels < 64 else "jpg")
        overrides = train_overrides(root, size, network)
        arguments = script_arguments(root, make_network(compose_config(*overrides)[0]).unet, home / "network")
        arguments += ["--resolution", size, "--num_epochs", 10, "--random_flip", "--checkpointing_steps", 100000]
        command = [script, *arguments, "--output_dir"]
        yield compare(name, overrides, lambda out, command=command: [*command, out], home, last)


def main(arguments: Namespace) -> None:
    script = require_script(arguments.script)
    with tempfile.TemporaryDirectory() as home:
        print_table(HEADER, measure_rows(script, Path(home)))
