"""Checkpoint files: crashes at every point of a save, full and read-only disks, truncations, flipped bits."""

import os
import random
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from diffusion_lit.runs import checkpoints
from diffusion_lit.system.errors import UserError
from diffusion_lit.training.checkpoint_files import checkpoint_bytes
from tests.runs import TINY, run

SETTINGS = [*TINY, "max_steps=12", "checkpoint_every=4", "val_every=0", "sample_every=0"]

# A write is tried again and again, dying one call later each time: before and after every call that touches the disk.
CRASHES = """
import builtins, os, sys, zipfile, torch
from pathlib import Path
from diffusion_lit.runs import checkpoints
run = Path(sys.argv[1])
run.mkdir(exist_ok=True)
state = lambda step: {"step": step, "weights": torch.arange(20000) * step}
for step in (1, 2):
    checkpoints.save_checkpoint(state(step), checkpoints.checkpoint_path(run, step))
calls, last = 0, 0
def counted(function):
    def call(*args, **kwargs):
        tick()
        result = function(*args, **kwargs)
        tick()
        return result
    return call
def tick():
    global calls
    calls += 1
    if calls == last:
        os._exit(9)
class File:
    def __init__(self, file): self.file = file
    def __getattr__(self, name): return getattr(self.file, name)
    def __enter__(self): return self
    def __exit__(self, *error): self.file.close()
    def write(self, data):
        tick()
        half = len(data) // 2
        self.file.write(memoryview(data)[:half])
        self.file.flush()
        tick()
        return half + self.file.write(memoryview(data)[half:])
while True:
    last += 1
    child = os.fork()
    if child == 0:
        real = builtins.open
        checkpoints.open = lambda path, mode: File(counted(real)(path, mode))
        for name in ("fsync", "replace", "open"):
            setattr(os, name, counted(getattr(os, name)))
        zipfile.ZipFile.testzip = counted(zipfile.ZipFile.testzip)
        checkpoints.save_checkpoint(state(3), checkpoints.checkpoint_path(run, 3))
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    steps = checkpoints.list_steps(run)
    assert steps in ([1, 2], [1, 2, 3]), steps
    for step in steps:
        assert checkpoints.find_damage(checkpoints.checkpoint_path(run, step)) is None
        loaded = checkpoints.load_checkpoint(checkpoints.checkpoint_path(run, step))
        assert torch.equal(loaded["weights"], state(step)["weights"])
    if code == 0:
        break
    checkpoints.checkpoint_path(run, 3).unlink(missing_ok=True)
    checkpoints.remove_partial_files(run)
    assert [path.name for path in (run / "checkpoints").iterdir() if path.name.startswith(".")] == []
print(last - 1)
"""


@pytest.mark.parametrize(
    "elsewhere", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["one disk", "TMPDIR on another"]
)
def test_a_crash_at_any_point_of_a_save_costs_no_checkpoint(tmp_path, elsewhere):
    folder = Path("/dev/shm") if elsewhere else tmp_path
    if elsewhere and not os.access(folder, os.W_OK):
        pytest.skip("no /dev/shm")
    done = subprocess.run(
        [sys.executable, "-c", CRASHES, tmp_path / "run"],
        env=os.environ | {"TMPDIR": str(folder)}, capture_output=True, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 12


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """A run folder with checkpoints at steps 8 and 12."""
    folder = tmp_path_factory.mktemp("good") / "run"
    run("train", *SETTINGS, f"run_dir={folder}", cwd=folder.parent)
    return folder


def test_damage_is_never_read_as_an_intact_checkpoint(good, tmp_path):
    """Nine truncations and 200 flipped bits: refused by name, or, where a flip changes nothing, read as it was."""
    path = checkpoints.checkpoint_path(good, 12)
    data, broken = path.read_bytes(), tmp_path / "step-00000012.ckpt"
    truth = checkpoints.load_checkpoint(path)
    dice = random.Random(0)
    damaged = [data[: int(len(data) * share)] for share in (0, 0.0001, 0.01, 0.1, 0.25, 0.5, 0.75, 0.99, 0.9999)]
    for _ in range(200):
        bits = bytearray(data)
        bits[dice.randrange(len(bits))] ^= 1 << dice.randrange(8)
        damaged.append(bytes(bits))
    refused = 0
    for bits in damaged:
        broken.write_bytes(bits)
        if checkpoints.find_damage(broken):
            refused += 1
            continue
        read = None
        with suppress(UserError):
            read = checkpoints.load_checkpoint(broken)
        refused += read is None
        for key, value in truth["state_dict"].items() if read else ():
            assert torch.equal(read["state_dict"][key], value)
    assert refused > 150


def test_broken_checkpoints_are_set_aside_and_the_run_goes_on_from_the_one_before(good, tmp_path):
    folder = tmp_path / "run"
    subprocess.run(["cp", "-a", good, folder], check=True)
    newest = checkpoints.checkpoint_path(folder, 12)
    newest.write_bytes(newest.read_bytes()[:-100])
    (folder / "checkpoints" / ".step-00000016.ckpt.tmp").write_bytes(b"half")
    printed = run("train", f"resume={folder}", "max_steps=16", cwd=tmp_path)
    assert "using step-00000008.ckpt instead of" in printed
    assert str(newest) in printed
    assert newest.with_suffix(".ckpt.corrupt").exists()
    assert not list((folder / "checkpoints").glob(".*"))
    assert checkpoints.list_steps(folder) == [12, 16]


# The prelude of a run whose checkpoints from step `first` to `last` cannot be written.
FULL = """
import errno, os
from diffusion_lit.runs import checkpoints
fsync, now = os.fsync, checkpoints.save_checkpoint
def write(checkpoint, path):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fsync = full if {first} <= checkpoint["global_step"] <= {last} else fsync
    now(checkpoint, path)
checkpoints.save_checkpoint = write
"""


def test_a_disk_that_is_full_for_a_while_costs_no_run(tmp_path):
    folder = tmp_path / "run"
    prelude = FULL.format(first=4, last=8)
    printed = run("train", *SETTINGS, "max_steps=16", f"run_dir={folder}", cwd=tmp_path, prelude=prelude)
    assert printed.count("cannot be written") == 2
    assert printed.count("training continues") == 2
    assert checkpoints.list_steps(folder) == [12, 16]


def test_a_disk_that_stays_full_ends_the_run_with_what_it_had(tmp_path):
    folder = tmp_path / "run"
    prelude = FULL.format(first=8, last=99)
    overrides = [*SETTINGS, "max_steps=40", f"run_dir={folder}"]
    printed = run("train", *overrides, cwd=tmp_path, code=75, prelude=prelude)
    assert printed.count("cannot be written") == 3  # at steps 8, 12 and 16
    assert checkpoints.list_steps(folder) == [4]
    assert not list((folder / "checkpoints").glob(".*"))
    run("train", f"resume={folder}", cwd=tmp_path)
    assert checkpoints.list_steps(folder)[-1] == 40


def test_a_disk_too_small_is_refused_before_training(good, tmp_path):
    prelude = "import shutil\nfull = shutil.disk_usage('/')._replace(free=1000)\nshutil.disk_usage = lambda path: full"
    overrides = [*SETTINGS, f"run_dir={tmp_path / 'run'}"]
    printed = run("train", *overrides, cwd=tmp_path, code=5, prelude=prelude)
    assert "its checkpoints need 1 MiB, and 0 MiB are free" in printed
    assert not (tmp_path / "run").exists()


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    prelude = """
from diffusion_lit.training.module import DiffusionModule
step = DiffusionModule.optimizer_step
def poisoned(self, *args):
    step(self, *args)
    if self.global_step == 5:
        next(self.net.parameters()).data[0] = float("inf")
DiffusionModule.optimizer_step = poisoned
"""
    overrides = [*SETTINGS, "log_every=100", "trainer.gradient_clip_val=null", f"run_dir={tmp_path / 'run'}"]
    printed = run("train", *overrides, cwd=tmp_path, code=6, prelude=prelude)
    assert "the last good checkpoint is step 4" in printed
    assert checkpoints.list_steps(tmp_path / "run") == [4]


def test_the_size_of_a_checkpoint_is_known_before_it_is_written(good):
    from diffusion_lit.runs.stored_config import read_model_config
    from diffusion_lit.training.build_run import make_module

    size = checkpoints.checkpoint_path(good, 12).stat().st_size
    assert checkpoint_bytes(make_module(read_model_config(good))) == pytest.approx(size, rel=0.5)
