"""SIGKILL at any moment, again and again: no checkpoint is lost, and the run ends as one that was never killed.

pytest tests/chaos/test_kills.py                   5 kills, and some of samples and sweeps
pytest tests/chaos/test_kills.py -m slow           220 more, and 30 of runs with two processes
"""

import random
import subprocess
import time
from itertools import count
from pathlib import Path

import pytest

from diffusion_lit.runs import checkpoints
from diffusion_lit.runs.run_dir import is_run_dir, read_result
from tests.equal_runs import SETTINGS, assert_equal_runs
from tests.runs import run, start

KILLED = [*SETTINGS, "max_steps=60", "checkpoint_every=3", "sample_every=20", "sampler.steps=4"]
TWO = ["strategy=ddp", "strategy.devices=2", "strategy.accelerator=cpu"]


@pytest.mark.parametrize(
    ("kills", "settings"),
    [
        (5, [*KILLED, "max_steps=30"]),
        pytest.param(20, [*KILLED, "max_steps=40"], marks=pytest.mark.slow),
        pytest.param(200, KILLED, marks=pytest.mark.slow),
        pytest.param(30, [*KILLED, *TWO], marks=pytest.mark.slow),
    ],
    ids=["5", "20", "200", "30 of two processes"],
)
def test_kills_at_any_moment_change_nothing(tmp_path, kills, settings):
    """Kill at random moments: at start-up, while decoding, training, validating, sampling a preview and saving; begin
    new runs until there were enough kills."""
    unbroken, dice, done = tmp_path / "unbroken", random.Random(kills), 0
    started = time.monotonic()
    run("train", *settings, f"run_dir={unbroken}", cwd=tmp_path)
    seconds = time.monotonic() - started
    for number in count():
        broken = tmp_path / f"broken-{number}"
        done += kill_until_finished(settings, broken, dice, seconds, kills - done)
        assert_equal_runs(unbroken, broken)
        if done >= kills:
            break


def kill_until_finished(settings: list[str], folder: Path, dice: random.Random, seconds: float, most: int) -> int:
    """Start, kill and resume a run until it finishes; return the number of kills, at most `most`."""
    kills, newest = 0, 0
    while read_result(folder).get("status") != "finished":
        begun = is_run_dir(folder)  # by config.yaml, which is written last
        if not begun and folder.exists():
            subprocess.run(["rm", "-r", folder], check=True)  # killed before there was anything to resume
        overrides = [f"resume={folder}"] if begun else [*settings, f"run_dir={folder}"]
        process = start("train", *overrides, cwd=folder.parent)
        try:
            process.wait(timeout=dice.uniform(0, 0.9 * seconds) if kills < most else None)
        except subprocess.TimeoutExpired:
            process.kill()
            kills += 1
        printed = process.communicate(timeout=120)[0]
        assert process.returncode in (0, -9), printed
        steps = checkpoints.list_steps(folder)
        intact = [step for step in steps if checkpoints.find_damage(checkpoints.checkpoint_path(folder, step)) is None]
        assert intact == steps, "a checkpoint under its final name is not intact"
        assert max(steps, default=0) >= newest, "a checkpoint was lost"
        assert len(steps) >= min(2, newest // 3), "the last two are kept"
        newest = max(steps, default=0)
    return kills


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def kill_until_done(verb: str, words: list[str], cwd: Path, dice: random.Random, seconds: float, kills: int) -> None:
    """Start the same command again and again, and kill it at random moments, until it ends by itself."""
    for number in count():
        process = start(verb, *words, cwd=cwd)
        try:
            process.wait(timeout=dice.uniform(0, seconds) if number < kills else None)
        except subprocess.TimeoutExpired:
            process.kill()
        printed = process.communicate(timeout=120)[0]
        assert process.returncode in (0, -9), printed
        if process.returncode == 0 or (cwd / words[-1].removeprefix("out=") / "manifest.json").exists():
            return  # it has ended, or it was killed after its last file


@pytest.mark.parametrize("kills", [2, pytest.param(40, marks=pytest.mark.slow)])
def test_a_sample_killed_at_any_moment_is_that_of_an_unbroken_one(tiny_run, tmp_path, kills):
    words = [f"run={tiny_run}", "num_images=60", "sampler=ddim", "sampler.steps=10", "sampler.batch_size=5", "npy=true"]
    for number, more in enumerate(([], ["shards=4"])):
        started = time.monotonic()
        run("sample", *words, *more, f"out=unbroken-{number}", cwd=tmp_path)
        seconds = time.monotonic() - started
        dice = random.Random(kills + number)
        kill_until_done("sample", [*words, *more, f"out=broken-{number}"], tmp_path, dice, seconds, kills)
        broken, unbroken = (contents(tmp_path / f"{name}-{number}") for name in ("broken", "unbroken"))
        images = [name for name in unbroken if name.endswith((".png", ".npy"))]
        assert images
        assert all(broken[name] == unbroken[name] for name in images)
        assert {name for name in broken if name[0] != "."} == {name for name in unbroken if name[0] != "."}


@pytest.mark.parametrize("kills", [2, pytest.param(30, marks=pytest.mark.slow)])
def test_a_sweep_killed_at_any_moment_ends_as_an_unbroken_one(tmp_path, kills):
    words = ["--multirun", *SETTINGS, "max_steps=12", "checkpoint_every=3", "sample_every=0", "seed=1,2"]
    started = time.monotonic()
    run("train", *words, "hydra.sweep.dir=unbroken", cwd=tmp_path)
    seconds = time.monotonic() - started
    kill_until_done("train", [*words, "hydra.sweep.dir=broken"], tmp_path, random.Random(kills), seconds, kills)
    for job in "01":
        assert_equal_runs(tmp_path / "unbroken" / job, tmp_path / "broken" / job)
