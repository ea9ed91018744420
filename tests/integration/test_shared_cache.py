"""Several processes that want the same images: one decodes, the others wait, and none trains on damage."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from diffusion_lit.data.decoding import Decoding
from diffusion_lit.data.sources.data_source import Split
from diffusion_lit.data.store import load_split
from diffusion_lit.data.validation_split import hash_image, select_validation
from tests.image_sets import write_split
from tests.runs import TINY, run

DECODING = Decoding(8, 1)
COUNT = 40


@pytest.fixture
def split(tmp_path) -> Split:
    return write_split(tmp_path / "in", COUNT)


# A process that loads the pictures of sys.argv[1] by the cache of sys.argv[2], notes each one that it decodes, and goes
# no further than picture sys.argv[3] before there is a file `go`.
LOADS = """
import logging, os, platform, sys, time
from pathlib import Path
from diffusion_lit.data import build_lock as building
from diffusion_lit.data.decoding import Decoding
from diffusion_lit.data.sources.data_source import Split
from diffusion_lit.data.store import load_split
import numpy as np

logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
pictures, cache, gate = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
notes, go, decode = os.open("notes", os.O_CREAT | os.O_WRONLY | os.O_APPEND), Path("go"), Decoding.__call__

def noted(decoding, picture):
    while int(Path(str(picture)).stem) >= gate and not go.exists():
        time.sleep(0.005)
    os.write(notes, f"{os.getpid()}\\n".encode())
    return decode(decoding, picture)

Decoding.__call__ = noted
building.REPORT_INTERVAL = 0
exec(sys.argv[4])
paths = sorted(pictures.iterdir())
store = load_split(Split(paths, np.arange(len(paths))), Decoding(8, 1), cache, "train")
print("fingerprint", store.fingerprint, flush=True)
"""


def loading(here: Path, gate: int = 0, prelude: str = "") -> subprocess.Popen:
    command = [sys.executable, "-c", LOADS, here / "in", here / "cache", str(gate), prelude]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(command, cwd=here, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def wait_for(condition, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def decoded_by(here: Path) -> list[int]:
    """The process of each picture that was decoded."""
    return [*map(int, (here / "notes").read_text().split())] if (here / "notes").exists() else []


def printed(process: subprocess.Popen) -> str:
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 0, output
    return output


def fingerprint(output: str) -> str:
    return output.split("fingerprint ")[1].strip()


# ------------------------------------------------------------------------------------------ several at once


@pytest.mark.parametrize("prelude", ["", "platform.node = lambda: 'another-host'"], ids=["one host", "two hosts"])
def test_of_two_at_once_one_decodes_and_the_other_waits(split, tmp_path, prelude):
    builder = loading(tmp_path, gate=3)
    wait_for(lambda: len(decoded_by(tmp_path)) >= 3)
    waiter = loading(tmp_path, prelude=prelude)
    lines = [waiter.stdout.readline()]
    assert f"is being built by process {builder.pid} of" in lines[0]
    assert "waiting for it" in lines[0]
    (tmp_path / "go").touch()
    outputs = [printed(builder), printed(waiter)]
    assert decoded_by(tmp_path) == [builder.pid] * COUNT
    expected = load_split(split, DECODING, None, "train").fingerprint
    assert [fingerprint(output) for output in outputs] == [expected] * 2
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".npy"]


KILLS = {  # the moments of a build, by what the builder does there for ever
    "first": "gate = 0",
    "middle": "gate = 20",
    "sums": "import diffusion_lit.data.cache as kept; kept.CacheWriter.finish = lambda *args: time.sleep(1000)",
    "renaming": "os.replace = lambda *paths: time.sleep(1000)",
}


@pytest.mark.parametrize("moment", KILLS)
def test_who_waits_takes_over_from_a_builder_that_is_killed(split, tmp_path, moment):
    last = {"first": 0, "middle": 20}.get(moment, COUNT)
    builder = loading(tmp_path, COUNT, KILLS[moment])
    wait_for(lambda: list((tmp_path / "cache").glob(".*.tmp")) and len(decoded_by(tmp_path)) == last)
    waiter = loading(tmp_path, COUNT)
    assert f"by process {builder.pid} of" in waiter.stdout.readline()
    builder.send_signal(signal.SIGKILL)
    output = printed(waiter)
    builder.communicate()
    assert fingerprint(output) == load_split(split, DECODING, None, "train").fingerprint
    assert decoded_by(tmp_path)[last:] == [waiter.pid] * COUNT
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".npy"]


@pytest.mark.slow
def test_kills_at_random_moments_while_two_others_want_the_pictures(split, tmp_path):
    dice = random.Random(0)
    expected = load_split(split, DECODING, None, "train").fingerprint
    (tmp_path / "go").touch()
    slow = "old = noted; Decoding.__call__ = lambda *args: time.sleep(0.02) or old(*args)"
    for _ in range(30):
        processes = [loading(tmp_path, prelude=slow) for _ in range(3)]
        time.sleep(dice.uniform(0.3, 1.5))
        processes[dice.randrange(3)].send_signal(signal.SIGKILL)
        outputs = [process.communicate(timeout=60)[0] for process in processes]
        codes = [process.returncode for process in processes]
        assert sorted(codes)[1:] == [0, 0], outputs  # the third may have ended before its signal
        ended = [output for output, code in zip(outputs, codes, strict=True) if code == 0]
        assert {fingerprint(output) for output in ended} == {expected}
        assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".npy"]
        next((tmp_path / "cache").iterdir()).unlink()


def test_a_builder_that_finds_broken_pictures_leaves_nothing_and_the_next_one_finds_them_too(split, tmp_path):
    split.images[30].write_bytes(b"no picture")
    processes = [loading(tmp_path, gate=3), loading(tmp_path, gate=3)]
    wait_for(lambda: len(decoded_by(tmp_path)) >= 3)
    (tmp_path / "go").touch()
    for process in processes:
        assert "0030.png: cannot be read as an image" in process.communicate(timeout=60)[0]
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_each_process_builds_for_itself(split, tmp_path, number):
    without = (
        f"def refuse(*args): raise OSError({number}, os.strerror({number}))\nbuilding.platforms.fcntl.flock = refuse"
    )
    processes = [loading(tmp_path, gate=3, prelude=without) for _ in range(2)]
    wait_for(lambda: len(decoded_by(tmp_path)) >= 6)
    (tmp_path / "go").touch()
    outputs = [printed(process) for process in processes]
    assert all("has no locks" in output for output in outputs)
    expected = load_split(split, DECODING, None, "train").fingerprint
    assert [fingerprint(output) for output in outputs] == [expected] * 2
    assert sorted(decoded_by(tmp_path)) == sorted([process.pid for process in processes] * COUNT)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".npy"]


def find_row(folder: Path, part: str) -> int:
    """The number of the first file of a part with data.val_fraction=0.5."""
    hashes = np.array([hash_image(path)[0] for path in sorted(folder.iterdir())], np.uint64)
    is_val = select_validation(hashes, np.zeros(len(hashes), np.int64), 0.5)
    return int(np.flatnonzero(is_val if part == "val" else ~is_val)[0])


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_run_on_damaged_pictures_ends_before_it_saves_anything(split, tmp_path, part):
    """One cache file has both parts; the division is by a hash of each file, so the damaged row is looked up."""
    words = ["data=image_folder", f"data.root={tmp_path / 'in'}", "data.image_size=8", "data.channels=1", *TINY]
    words += [f"data.cache_dir={tmp_path / 'cache'}", "max_steps=2", "checkpoint_every=1", "sample_every=0"]
    run("train", *words, "data.val_fraction=0.5", "run_dir=one", cwd=tmp_path)
    (file,) = (tmp_path / "cache").glob("*.npy")
    row, images = find_row(tmp_path / "in", part), np.load(file, mmap_mode="r")
    bits = bytearray(file.read_bytes())
    bits[images.offset + row * 64 + 10] ^= 1
    file.write_bytes(bits)
    told = f"error: {file} is damaged. Remove it, and the images are decoded again."
    for asked in ([*words, "data.val_fraction=0.5", "run_dir=two"], ["resume=one", "max_steps=4"]):
        output = run("train", *asked, cwd=tmp_path, code=3)
        assert told in output
        assert "Traceback" not in output
        assert not list((tmp_path / "two").glob("checkpoints/step-*"))
