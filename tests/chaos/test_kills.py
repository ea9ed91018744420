"""SIGKILL at any moment, again and again: no checkpoint is lost, and the run ends as one that was never killed.

pytest tests/chaos/test_kills.py                   20 kills
pytest tests/chaos/test_kills.py -m slow           200 more, and 30 of runs with two processes
"""

import random
import subprocess
import time
from itertools import count
from pathlib import Path

import pytest

from diffusion_lit.runs import checkpoints
from diffusion_lit.runs.run_dir import read_result
from tests.equal_runs import SETTINGS, assert_equal_runs
from tests.runs import run, start

KILLED = [*SETTINGS, "max_steps=60", "checkpoint_every=3", "sample_every=20", "sampler.steps=4"]
TWO = ["strategy=ddp", "strategy.devices=2", "strategy.accelerator=cpu"]


@pytest.mark.parametrize(
    ("kills", "settings"),
    [
        (8, [*KILLED, "max_steps=40"]),
        pytest.param(20, [*KILLED, "max_steps=40"], marks=pytest.mark.slow),
        pytest.param(200, KILLED, marks=pytest.mark.slow),
        pytest.param(30, [*KILLED, *TWO], marks=pytest.mark.slow),
    ],
    ids=["8", "20", "200", "30 of two processes"],
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
        begun = (folder / "command.txt").exists()
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
