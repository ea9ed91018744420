"""Images a second beside diffusers' script, in turns, with the same UNet, batch, optimizer, average and pictures.

Each is a process of its own. From its 5th optimizer step to its last everything counts: decoding, augmentation, forward
and backward, optimizer, average, logging; the time until the 5th step, where pictures are decoded here, stands beside.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.measure import config_of, interval, script, shown, table
from diffusion_lit.runs.build import make_network

ROUNDS, FIRST = 3, 4
HEAD = ["", "img/s here", "img/s there", "ratio", "before: here, there"]
CLOCK = """
import json, os, runpy, sys, time
from torch.optim.optimizer import register_optimizer_step_post_hook
last, stop, kind, name, *sys.argv = sys.argv[1:]
sys.argv.insert(0, name)
times = [time.perf_counter()]
def tell(*_):
    times.append(time.perf_counter())
    if len(times) == int(last) + 1:
        print("seconds", json.dumps([t - times[0] for t in times]), flush=True)
        if stop == "stop":
            os._exit(0)
register_optimizer_step_post_hook(tell)
run, more = (runpy.run_module, {"alter_sys": True}) if kind == "module" else (runpy.run_path, {})
run(name, run_name="__main__", **more)
"""
SMALL = (
    "model.block_out_channels=[8,16,16]", "model.norm_num_groups=4", "model.layers_per_block=1",
    "model.attention_levels=[]", "model.middle_attention=false",
)  # fmt: skip
LARGER = ("model.block_out_channels=[64,128,128]", "model.layers_per_block=1")
CASES = {  # name: (size of the files, size they are trained at, our words, last step)
    "1.1 M, 32x32, float32": (32, 32, ("model.layers_per_block=1",), 20),
    "4.4 M, 32x32, float32": (32, 32, LARGER, 12),  # bf16 on a processor without it takes a minute a step
    "photos of 500 px at 64x64, 0.07 M": (500, 64, SMALL, 20),
    "photos of 1024 px at 64x64, 0.07 M": (1024, 64, SMALL, 20),
}  # fmt: skip


def pictures(folder: Path, size: int, count: int = 2_000) -> Path:
    random = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    for k in range(count if not any(folder.iterdir()) else 0):
        small = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        small.resize((size, size), Image.Resampling.BICUBIC).save(folder / f"{k}.{'png' if size < 64 else 'jpg'}")
    return folder


def seconds(last: int, *command: str, then: str = "stop") -> list[float]:
    """From the start of the process until the end of optimizer step 0 (none), 1, ... `last`, where it stops."""
    words = [sys.executable, "-c", CLOCK, str(last), then, *command]
    done = subprocess.run(words, capture_output=True, text=True)
    if "seconds" not in done.stdout:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.rpartition("seconds ")[2].splitlines()[0])


def words_of(folder: Path, at: int, ours: tuple) -> list[str]:
    """Of a `train` as the others train: these pictures at a size, without classes."""
    words = ["data=image_folder", f"data.root={folder}", "data.labels=none", f"data.image_size={at}", "data.channels=3"]
    words += ["data.flip=0.5", "model=unet_small", *ours, "diffusion=ddpm", "weighting=uniform", "optimizer.lr=0.0001"]
    return [*words, "val_every=0", "sample_every=0", "checkpoint_every=100000", "global_batch_size=64", "max_steps=100"]


def in_turns(words: list[str], theirs: Callable[[Path], list[object]], home: Path, last: int) -> list[list[tuple]]:
    """Seconds before, and images a second, of `train` and of another program, which is given a new folder each time."""
    found: list[list[tuple[float, float]]] = [[], []]
    for _ in range(ROUNDS):
        for rate, command in zip(found, (
            ("module", "diffusion_lit.train", *words, f"run_dir={Path(tempfile.mkdtemp(dir=home)) / 'run'}"),
            ("file", *map(str, theirs(Path(tempfile.mkdtemp(dir=home))))),
        ), strict=True):  # fmt: skip
            times = seconds(last, *command)
            rate.append((times[FIRST], 64 * (last - FIRST) / (times[last] - times[FIRST])))
    return found


def row(name: str, found: list[list[tuple]]) -> list[str]:
    ours, theirs = found
    ratio = [one / other for (_, one), (_, other) in zip(ours, theirs, strict=True)]
    before, rate = (interval(part)[0] for part in zip(*ours, strict=True))
    waited, other = (interval(part)[0] for part in zip(*theirs, strict=True))
    return [name, f"{rate:,.1f}", f"{other:,.1f}", shown(ratio, "", 2), f"{before:.0f} s, {waited:.0f} s"]


def rates(path: str, home: Path, size: int, at: int, ours: tuple, last: int) -> list[list[tuple]]:
    folder = pictures(home / f"pictures{size}", size, 2_000 if size < 64 else 640)
    words = words_of(folder, at, ours)
    network = make_network(config_of(*words)[0]).unet
    theirs = [*script_words(folder, network, home / "network"), "--resolution", at, "--num_epochs", 10]
    theirs += ["--random_flip", "--checkpointing_steps", 100000]
    return in_turns(words, lambda out: [path, *theirs, "--output_dir", out], home, last)


def script_words(pictures: Path, network, home: Path) -> list[object]:
    """Words of the script for the same pictures, network and batch; after its first epoch it draws a picture whatever
    is said, here in one step."""
    home.mkdir(exist_ok=True)
    (home / "config.json").write_text(json.dumps(dict(network.config) | {"_class_name": "UNet2DModel"}))
    words = ["--train_data_dir", pictures, "--model_config_name_or_path", home, "--train_batch_size", 64, "--use_ema"]
    words += ["--center_crop", "--save_images_epochs", 100000, "--save_model_epochs", 100000]
    return [*words, "--eval_batch_size", 1, "--ddpm_num_inference_steps", 1]


def main() -> None:
    path = script()
    with tempfile.TemporaryDirectory() as home:
        table(HEAD, (row(name, rates(path, Path(home), *case)) for name, case in CASES.items()))
