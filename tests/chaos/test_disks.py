"""Disks that are full, limited or read-only, before a run and during it: nothing is lost, the exit code is right."""

import os
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from diffusion_lit.data import cache
from diffusion_lit.runs import checkpoints
from diffusion_lit.runs.metrics_file import MetricsFile, read_metrics
from diffusion_lit.system.errors import UserError
from tests.equal_runs import assert_equal_training
from tests.runs import TINY, run, trace

SETTINGS = [*TINY, "max_steps=16", "checkpoint_every=4", "val_every=4", "sample_every=4"]

# The prelude of a run in which something happens once step `step` is done, before its row, preview and checkpoint.
AT_STEP = """
from diffusion_lit.training.callbacks.non_finite_guard import NonFiniteGuard
after_step = NonFiniteGuard.after_step
def watched(self, trainer, module):
    {happens}
    after_step(self, trainer, module)
NonFiniteGuard.after_step = watched
"""
# Root may write anywhere; without this capability it has the rights of a user who owns the folder.
ORDINARY = """
import ctypes
libc, header, sets = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
libc.capget(header, sets)
for k in (0, 1, 2):
    sets[k] &= ~0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: effective, permitted, inheritable
assert libc.capset(header, sets) == 0
"""
READ_ONLY = "[os.chmod(folder, 0o{}) for folder in (self.run, self.run / 'checkpoints', self.run / 'samples')]"


def at(step: int, happens: str, *more: tuple[int, str]) -> str:
    cases = [f"if self.step == {k}: {what}" for k, what in ((step, happens), *more)]
    return "import os, resource\n" + AT_STEP.format(happens="\n    ".join(cases))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    run("train", *SETTINGS, f"run_dir={folder}", cwd=folder.parent)
    return folder


@contextmanager
def small_disk(path: Path, size: str):
    """A file system of its own in a folder."""
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def ends_like(unbroken: Path, folder: Path) -> None:
    """Resume on a good disk: the run equals one that nothing happened to, previews that failed aside."""
    run("train", f"resume={folder}", cwd=folder.parent)
    assert checkpoints.list_steps(folder)[-1] == 16
    assert_equal_training(unbroken, folder)


# ------------------------------------------------------------------------------------------------ full


FILLED = "from contextlib import suppress\ndef fill(path):\n    with suppress(OSError), open(path, 'wb', 0) as file:\n"
FILLED += "        for k in (1 << 16, 1 << 10, 1):\n            with suppress(OSError):\n"
FILLED += "                while file.write(bytes(k)): pass\n"


def test_a_disk_that_fills_up_and_stays_full(unbroken, tmp_path):
    with small_disk(tmp_path / "disk", "4m") as disk:
        folder = disk / "run"
        prelude = FILLED + at(6, "fill(self.run.parent / 'filler')")
        overrides = [*SETTINGS, "max_steps=40", "logger=tensorboard", f"run_dir={folder}"]
        printed = run("train", *overrides, cwd=tmp_path, code=75, prelude=prelude)
        assert printed.count("cannot be written (0.0 MiB free") == 3
        assert printed.count("the preview of step 8 failed, the run continues: OSError: [Errno 28]") == 1
        assert printed.count("metrics.csv cannot be written") >= 1
        assert printed.count("TensorBoard is switched off") == 1
        assert printed.count("train.log cannot be written") == 1
        assert "Traceback" not in printed
        assert checkpoints.list_steps(folder) == [4]
        assert not list((folder / "samples").glob("*.tmp"))
        (disk / "filler").unlink()
        shutil.copytree(folder, tmp_path / "run", symlinks=True)
        run("train", f"resume={folder}", "max_steps=16", cwd=tmp_path)
        assert trace(folder) == trace(unbroken)


def test_a_disk_that_is_full_for_a_while_loses_no_row(unbroken, tmp_path):
    with small_disk(tmp_path / "disk", "4m") as disk:
        folder = disk / "run"
        prelude = FILLED + at(6, "fill(self.run.parent / 'f')", (11, "os.unlink(self.run.parent / 'f')"))
        printed = run("train", *SETTINGS, f"run_dir={folder}", cwd=tmp_path, prelude=prelude)
        assert printed.count("training continues; will retry at the next checkpoint interval") == 1
        assert trace(folder) == trace(unbroken)
        assert_equal_training(unbroken, folder)
        grids = sorted(path.name for path in (folder / "samples").glob("*.png"))
        assert grids == [f"step-{step:08d}.png" for step in (4, 12, 16)]


@pytest.mark.slow
def test_a_full_folder_of_logs_ends_no_run(tmp_path):
    """W&B and TensorBoard on a disk of their own, which is full; the run's own files are complete."""
    overrides = [*SETTINGS, "sample_every=0"]
    messages = {"wandb": "no space left for the records of W&B", "tensorboard": "No space left on device"}
    for logger, message in messages.items():
        here = tmp_path / logger
        here.mkdir()
        with small_disk(here / "full", "64k") as full:
            (full / "filler").write_bytes(bytes(40_000))
            start = (
                "import os\nfrom diffusion_lit.training.loggers.run_logger import RunLogger\nstart = RunLogger.start\n"
            )
            start += f"def linked(self, run, *rest):\n    os.symlink({str(full)!r}, run / {logger!r})\n"
            start += "    start(self, run, *rest)\nRunLogger.start = linked\n"
            printed = run("train", *overrides, f"logger={logger}", "run_dir=run", cwd=here, prelude=start)
        assert "Traceback" not in printed
        assert printed.count("is switched off, the run continues: OSError") == 1
        assert message in printed
        assert len(trace(here / "run")) == 16
        assert checkpoints.list_steps(here / "run")[-1] == 16


@pytest.mark.slow
def test_a_limit_on_the_size_of_files(unbroken, tmp_path):
    folder = tmp_path / "run"
    prelude = at(6, "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))")
    overrides = [*SETTINGS, f"run_dir={folder}"]
    printed = run("train", *overrides, cwd=tmp_path, code=75, prelude=prelude)
    assert printed.count("cannot be written") >= 3
    assert "Traceback" not in printed
    assert checkpoints.list_steps(folder) == [4]
    ends_like(unbroken, folder)


def test_decoded_images_that_do_not_fit_on_the_disk_are_refused(tmp_path):
    """The space is reserved before the first image is decoded."""
    refusal = pytest.raises(UserError, match="cannot hold 3 MiB")
    with small_disk(tmp_path / "disk", "64k") as disk, open(disk / "images.npy", "wb") as file, refusal as refused:
        cache.CacheWriter(file, (3, 32, 32), 1000)
    assert refused.value.exit_code == 5


def test_a_row_that_is_cut_by_a_full_disk_is_completed(tmp_path, monkeypatch):
    metrics, room, write = MetricsFile(tmp_path / "metrics.csv", ["loss"]), 100, os.write

    def limited(file: int, data: bytes) -> int:
        nonlocal room
        if not room:
            raise OSError(28, "No space left on device")
        written = write(file, data[:room])
        room -= written
        return written

    monkeypatch.setattr(os, "write", limited)
    values = np.random.default_rng(0).random(20).tolist()
    is_written = [metrics.add(step, {"loss": value}) for step, value in enumerate(values[:10], 1)]
    assert is_written == sorted(is_written, reverse=True)
    assert not is_written[-1]
    room = 10_000
    assert all(metrics.add(step, {"loss": value}) for step, value in enumerate(values[10:], 11))
    metrics.close()
    assert [float(row["loss"]) for row in read_metrics(tmp_path / "metrics.csv")] == values


# ------------------------------------------------------------------------------------------------ read-only


def test_a_folder_that_becomes_read_only(unbroken, tmp_path):
    folder = tmp_path / "run"
    prelude = ORDINARY + at(6, READ_ONLY.format("555"))
    printed = run("train", *SETTINGS, f"run_dir={folder}", cwd=tmp_path, code=75, prelude=prelude)
    assert printed.count("cannot be written") == 3
    assert printed.count("Permission denied. Earlier checkpoints are intact") == 3
    assert "Traceback" not in printed
    assert checkpoints.list_steps(folder) == [4]
    for name in (".", "checkpoints", "samples"):
        (folder / name).chmod(0o755)
    ends_like(unbroken, folder)


@pytest.mark.parametrize("name", [".", "checkpoints"])
def test_a_run_in_a_read_only_folder_is_not_resumed(unbroken, tmp_path, name):
    folder = tmp_path / "run"
    shutil.copytree(unbroken, folder, symlinks=True)
    before = sorted(os.listdir(folder))
    (folder / name).chmod(0o555)
    try:
        printed = run("train", f"resume={folder}", "max_steps=20", cwd=tmp_path, code=5, prelude=ORDINARY)
    finally:
        (folder / name).chmod(0o755)
    assert f"{folder / name} cannot be written to: Permission denied" in printed
    assert "Traceback" not in printed
    assert sorted(os.listdir(folder)) == before


def test_a_read_only_folder_is_refused_before_anything_is_read(tmp_path):
    (tmp_path / "outputs").mkdir(mode=0o555)
    printed = run("train", *SETTINGS, cwd=tmp_path, code=5, prelude=ORDINARY)
    assert f"{tmp_path / 'outputs'} is not a writable folder" in printed
    assert "Traceback" not in printed


def test_a_read_only_disk_is_refused(unbroken, tmp_path):
    with small_disk(tmp_path / "disk", "4m") as disk:
        shutil.copytree(unbroken, disk / "run", symlinks=True)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        new = run("train", *SETTINGS, f"run_dir={disk / 'new'}", cwd=tmp_path, code=5)
        old = run("train", f"resume={disk / 'run'}", "max_steps=20", cwd=tmp_path, code=5)
        samples = run("sample", f"run={disk / 'run'}", "num_images=2", cwd=tmp_path, code=5)
    assert f"{disk} is not a writable folder" in new
    assert f"{disk / 'run'} cannot be written to: Read-only file system" in old
    assert "cannot be made: Read-only file system" in samples
    assert "Traceback" not in new + old + samples
