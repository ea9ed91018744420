"""Signals at any moment: the run saves and ends with the right code, or goes on; resumed it equals an unbroken one."""

import signal
import time

import pytest

from diffusion_lit.runs import checkpoints
from diffusion_lit.runs.run_dir import read_result
from tests.equal_runs import assert_equal_runs
from tests.runs import TINY, last_step, run, start

SETTINGS = [*TINY, "max_steps=12", "checkpoint_every=4", "val_every=4", "sample_every=6", "model.dropout=0.1"]
CODES = {"SIGTERM": 143, "SIGINT": 130, "SIGHUP": 129, "SIGUSR1": 0}
# what to slow down so that a signal falls into it; its first call leaves a mark
SLOW = {
    "validation": ("diffusion_lit.training.validation_metric", "LossByNoiseLevel.update"),
    "preview": ("diffusion_lit.training.collective_sampling", "generate"),
    "save": ("diffusion_lit.runs.checkpoints", "find_damage"),  # a new file is read back before it has its name
}
MARK = """
import functools, importlib, pathlib, time
owner = importlib.import_module({module!r})
*path, name = {name!r}.split(".")
owner = functools.reduce(getattr, path, owner)
original = getattr(owner, name)
def slow(*args, **kwargs):
    pathlib.Path({mark!r}).touch()
    time.sleep(0.4)
    return original(*args, **kwargs)
setattr(owner, name, slow)
"""
QUICK = [
    ("SIGTERM", "start"),
    ("SIGHUP", "training"),
    ("SIGUSR1", "training"),
    ("SIGTERM", "save"),
    ("SIGINT", "preview"),
]
CASES = [
    pytest.param(name, phase, marks=[] if (name, phase) in QUICK else [pytest.mark.slow])
    for phase in ("start", "training", *SLOW)
    for name in CODES
]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    run("train", *SETTINGS, f"run_dir={folder / 'run'}", cwd=folder)
    return folder / "run"


@pytest.mark.parametrize(("name", "phase"), CASES)
def test_a_signal(name, phase, unbroken, tmp_path):
    folder, mark = tmp_path / "run", tmp_path / "mark"
    prelude = MARK.format(module=SLOW[phase][0], name=SLOW[phase][1], mark=str(mark)) if phase in SLOW else ""
    process = start("train", *SETTINGS, f"run_dir={folder}", cwd=tmp_path, prelude=prelude)
    moment = {"start": (folder / ".lock").exists, "training": lambda: last_step(folder) >= 2}.get(phase, mark.exists)
    while process.poll() is None and not moment():
        time.sleep(0.002)
    process.send_signal(getattr(signal, name))
    printed = process.communicate(timeout=120)[0]
    assert process.returncode == CODES[name], printed
    assert "Traceback" not in printed
    if phase == "start" and name != "SIGUSR1":
        assert not folder.exists(), "training had not begun, so there is nothing to keep"
        return
    assert read_result(folder)["exit_code"] == CODES[name]
    assert not list((folder / "checkpoints").glob(".*"))
    if phase != "start":
        assert f"{name}: finishing this step and saving" in printed
    run("train", f"resume={folder}", cwd=tmp_path)
    assert_equal_runs(unbroken, folder)


CLAIMED = """
import os, signal, diffusion_lit.runs.run_dir as folder
require_unused = folder.require_unused
def claimed(run):
    if (run / ".lock").exists():
        os.kill(os.getpid(), signal.SIGTERM)
    require_unused(run)
folder.require_unused = claimed
"""


def test_a_signal_between_the_lock_and_the_rest_leaves_no_folder(tmp_path):
    printed = run("train", *TINY, f"run_dir={tmp_path / 'run'}", cwd=tmp_path, code=143, prelude=CLAIMED)
    assert "SIGTERM: stopped" in printed
    assert not (tmp_path / "run").exists()


LOST = """
import os, signal, diffusion_lit.training.build_run as setup
load = setup.load_data
def swallowed(*args):
    try:  # as in libraries that catch whatever is raised; C code does it silently
        os.kill(os.getpid(), signal.{name})
    except BaseException:
        pass
    return load(*args)
setup.load_data = swallowed
"""


@pytest.mark.parametrize("name", ["SIGINT", pytest.param("SIGTERM", marks=pytest.mark.slow)])
def test_a_signal_that_a_library_swallows_before_training_still_ends_the_run(unbroken, tmp_path, name):
    folder = tmp_path / "run"
    prelude = LOST.format(name=name)
    printed = run("train", *SETTINGS, f"run_dir={folder}", cwd=tmp_path, code=CODES[name], prelude=prelude)
    assert f"{name}: finishing this step and saving" in printed
    assert last_step(folder) == 1
    run("train", f"resume={folder}", cwd=tmp_path)
    assert_equal_runs(unbroken, folder)


DROPPED = """
import os, signal, time, weakref, diffusion_lit.training.build_run as setup
load = setup.load_data
def interrupted(*args):
    referent = type("Referent", (), {{}})()
    reference = weakref.ref(referent, lambda _: os.kill(os.getpid(), signal.{name}))
    del referent  # Python drops what is raised in the callback, and prints its traceback
    time.sleep(5)
    return load(*args)
setup.load_data = interrupted
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_in_a_weakref_callback_ends_the_run_without_a_traceback(name, tmp_path):
    folder = tmp_path / "run"
    prelude = DROPPED.format(name=name)
    printed = run("train", *SETTINGS, f"run_dir={folder}", cwd=tmp_path, code=CODES[name], prelude=prelude)
    assert printed.count("stopped") == 1, printed
    assert "Traceback" not in printed
    assert not folder.exists()


@pytest.mark.parametrize("second", [pytest.param("SIGTERM", marks=pytest.mark.slow), "SIGUSR1"])
def test_two_signals_at_once_tear_no_file_and_the_end_stays_the_end(unbroken, tmp_path, second):
    folder = tmp_path / "run"
    process = start("train", *SETTINGS, f"run_dir={folder}", cwd=tmp_path)
    while process.poll() is None and last_step(folder) < 3:
        time.sleep(0.002)
    process.terminate()
    time.sleep(0.002)
    process.send_signal(getattr(signal, second))
    process.communicate(timeout=120)
    assert process.returncode == 143
    assert checkpoints.find_damage(checkpoints.select_checkpoint(folder)) is None
    run("train", f"resume={folder}", cwd=tmp_path)
    assert_equal_runs(unbroken, folder)


def test_slurm_queues_a_job_again_that_it_warns(unbroken, tmp_path, monkeypatch):
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f"#!/bin/sh\necho $* > {tmp_path / 'requeued'}\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:/usr/bin:/bin")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    folder = tmp_path / "run"
    process = start("train", *SETTINGS, f"run_dir={folder}", cwd=tmp_path)
    while process.poll() is None and last_step(folder) < 3:
        time.sleep(0.002)
    process.send_signal(signal.SIGUSR1)
    printed = process.communicate(timeout=120)[0]
    assert process.returncode == 75, printed
    assert (tmp_path / "requeued").read_text() == "requeue 77\n"
    run("train", f"resume={folder}", cwd=tmp_path)
    assert_equal_runs(unbroken, folder)
