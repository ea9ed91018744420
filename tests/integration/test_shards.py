"""`shards=`: many images by several processes that share a folder. Killed at any moment they go on, and what comes out
is what one process makes, bit by bit."""

import hashlib
import json
import os
import platform
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_lit.runs import shared_work
from diffusion_lit.system.errors import UserError
from diffusion_lit.system.files import write_atomically
from tests.forks import Process
from tests.runs import TINY, run, start

QUICK = [*TINY, "max_steps=2", "val_every=0", "sample_every=0"]
# seven shards of three batches, the last one of both not whole
MANY = ["num_images=200", "sampler=ddim", "sampler.steps=2", "sampler.batch_size=10", "seed=3"]
SHARDS = ["shards=7", "out=shared"]
OWN = ("seconds", "request", "images")  # of result.json, which differ where the numbers are the same


@pytest.fixture(scope="module")
def at_once(tiny_run) -> np.ndarray:
    """What one process makes, without shards."""
    run("sample", f"run={tiny_run}", *MANY, "npy=true", "out=at_once", cwd=tiny_run.parent)
    return np.load(tiny_run.parent / "at_once" / "images.npy")


def killed_at(shards: int, process: Process, folder: Path) -> int:
    """Kill a process once there are so many shards; returns its exit code."""
    while process.poll() is None and len(list(folder.glob("shards/*.npz"))) < shards:
        time.sleep(0.002)
    process.kill()
    process.communicate(timeout=60)
    return process.returncode


def numbers(folder: Path) -> dict:
    result = json.loads((folder / "result.json").read_text())
    return {key: value for key, value in result.items() if key not in OWN}


def test_killed_damaged_and_gone_on_with_by_two_it_is_what_one_process_makes(tiny_run, at_once, tmp_path):
    words, shared = [f"run={tiny_run}", *MANY, *SHARDS], tmp_path / "shared"
    assert killed_at(2, start("sample", *words, cwd=tmp_path), shared) == -signal.SIGKILL
    assert not (shared / "images.npy").exists()
    first, *_ = shards = sorted(shared.glob("shards/*.npz"))
    made = {int(file.stem): float(np.load(file)["seconds"]) for file in shards[1:]}
    data = first.read_bytes()
    first.write_bytes(data[:900] + bytes([data[900] ^ 1]) + data[901:])  # one bit of one pixel
    (shared / "shards" / ".00006.npz.elsewhere-0123abcd.tmp").write_bytes(b"half")
    two = [start("sample", *words, cwd=tmp_path) for _ in range(2)]
    printed = [process.communicate(timeout=60)[0] for process in two]
    assert [process.returncode for process in two] == [0, 0], printed
    assert sum(f"{first.name} is damaged" in text for text in printed) == 1
    assert all("200 images" in text and "7 shards" in text for text in printed)
    assert np.array_equal(np.load(shared / "images.npy"), at_once)
    assert np.load(shared / "labels.npy").tolist() == [k // 20 for k in range(200)]
    names = {path.name for path in shared.iterdir() if path.name[0] != "."}
    assert names == {"plan.json", "images.npy", "labels.npy", "grid.png", "manifest.json"}
    manifest = json.loads((shared / "manifest.json").read_text())
    assert [shard["images"] for shard in manifest["shards"]] == [30] * 6 + [20]
    assert len({shard["blake2b"] for shard in manifest["shards"]}) == 7
    assert made.items() <= dict(enumerate(shard["seconds"] for shard in manifest["shards"])).items()  # made once
    before = (shared / "manifest.json").stat().st_mtime_ns
    run("sample", *words, cwd=tmp_path)
    assert (shared / "manifest.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "damage", ["a bit", *[pytest.param(name, marks=pytest.mark.slow) for name in ("cut", "empty", "manifest")]]
)
def test_images_that_are_damaged_later_are_made_again(tiny_run, tmp_path, damage):
    words, out = [f"run={tiny_run}", *MANY, *SHARDS], tmp_path / "shared"
    run("evaluate", *words, cwd=tmp_path)
    images, manifest, measured = out / "images.npy", out / "manifest.json", numbers(out)
    data = images.read_bytes()
    other = {"a bit": data[:900] + bytes([data[900] ^ 1]) + data[901:], "cut": data[:-1], "empty": b""}
    images.write_bytes(other.get(damage, data))
    if damage == "manifest":
        manifest.write_text(manifest.read_text()[:-20])
    assert "images.npy or its manifest is damaged and will be made again" in run("evaluate", *words, cwd=tmp_path)
    assert images.read_bytes() == data
    assert numbers(out) == measured
    assert "damaged" not in run("evaluate", *words, cwd=tmp_path)


def test_two_processes_measure_what_one_measures(tiny_run, tmp_path):
    words = [f"run={tiny_run}", *MANY]
    run("evaluate", *words, "out=alone", cwd=tmp_path)
    two = [start("evaluate", *words, *SHARDS, cwd=tmp_path) for _ in range(2)]
    printed = [process.communicate(timeout=120)[0] for process in two]
    assert [process.returncode for process in two] == [0, 0], printed
    assert sum("by another process" in text for text in printed) == 1
    assert numbers(tmp_path / "shared") == numbers(tmp_path / "alone")
    neighbours = [(tmp_path / name / "neighbors.png").read_bytes() for name in ("shared", "alone")]
    assert neighbours[0] == neighbours[1]
    (file,) = (tmp_path / "shared").glob("features-*/*.npz")
    file.write_bytes(file.read_bytes()[:-100])
    (tmp_path / "shared" / "result.json").unlink()
    assert f"{file.name} is damaged" in run("evaluate", *words, *SHARDS, cwd=tmp_path)
    assert numbers(tmp_path / "shared") == numbers(tmp_path / "alone")


def test_shards_of_something_else_are_not_gone_on_with(tiny_run, tmp_path):
    copy, words = tmp_path / "run", ["run=run", *MANY, "num_images=20", "shards=1", "out=shared"]
    shutil.copytree(tiny_run, copy, symlinks=True)
    run("sample", *words, cwd=tmp_path)
    run("train", "resume=run", "max_steps=5", cwd=tmp_path)
    told = run("sample", *words, "sampler.eta=1", cwd=tmp_path, code=5)
    for line in ("checkpoint: step-00000004.ckpt there, step-00000005.ckpt now", "sampler.eta: 0.0 there, 1 now"):
        assert line in told
    assert "network: " in told
    run("sample", *words, "checkpoint=4", cwd=tmp_path)
    assert "lists no image files" in run("sample", "run=run", "init=shared", "sampler=ddim", cwd=tmp_path, code=3)


def test_a_plan_is_written_once_and_kept_to(tmp_path):
    plan = {"seed": 3, "sampler": {"steps": 2, "name": "ddim"}, "labels": (0.5, 0.5)}
    for _ in range(2):
        shared_work.claim_folder(plan, tmp_path / "new" / "out")
    with pytest.raises(UserError, match=r"(?s)sampler.steps: 2 there, 3 now.*choose a new folder"):
        shared_work.claim_folder(plan | {"sampler": {"steps": 3, "name": "ddim"}}, tmp_path / "new" / "out")
    with pytest.raises(UserError, match="eta: None there, 1 now"):
        shared_work.claim_folder(plan | {"eta": 1}, tmp_path / "new" / "out")
    with pytest.raises(UserError, match="is not empty"):
        shared_work.claim_folder(plan, tmp_path)
    (tmp_path / "new" / "out" / "plan.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        shared_work.claim_folder(plan, tmp_path / "new" / "out")


@pytest.mark.parametrize(("words", "told"), [
    (["out=null"], "the processes need a common folder. Add out="),
    (["gif=true"], "shards=7 and gif=true: use one of the two"),
    (["seeds=[3,8]"], "shards=7 and seeds=[3, 8]"),
    (["shards=0"], "shards=0: must be null or int >= 1"),
])  # fmt: skip
def test_what_does_not_go_with_shards_is_told_at_once(tiny_run, tmp_path, words, told):
    kept = [word for word in [*MANY, *SHARDS] if word.partition("=")[0] not in {w.partition("=")[0] for w in words}]
    kept = [word for word in kept if not (word.startswith("seed=") and "seeds" in told)]
    assert told in run("sample", f"run={tiny_run}", *kept, *words, cwd=tmp_path, code=2)
    assert not (tmp_path / "shared").exists()


def test_without_locks_pieces_are_made_all_the_same(tmp_path, monkeypatch):
    files, made = [tmp_path / str(k) for k in range(5)], []

    def make(k: int) -> None:
        made.append(k)
        shared_work.save_arrays(files[k], k=k)

    def no_locks(*args, **kwargs) -> None:
        raise OSError(shared_work.errno.ENOLCK, "no locks available")

    shared_work.share_work(tmp_path / ".lock", 5, lambda k: files[k].exists(), make)
    assert sorted(made) == list(range(5))
    files[3].unlink()
    monkeypatch.setattr(shared_work, "lock_byte", no_locks)
    shared_work.share_work(tmp_path / ".lock", 5, lambda k: files[k].exists(), make)
    assert made[5:] == [3]


def test_what_others_have_done_meanwhile_is_not_made_again(tmp_path):
    """Without locks the shards of one who puts them together may be removed by another who has done so."""
    shared_work.recreate_damaged([tmp_path / "gone.npz"], pytest.fail, print, is_done=lambda: True)
    made = []
    shared_work.recreate_damaged(
        [tmp_path / "1.npz"], lambda: made.append(shared_work.save_arrays(tmp_path / "1.npz", k=1)), print
    )
    assert len(made) == 1


def test_only_what_dead_processes_were_writing_is_removed(tmp_path):
    with write_atomically(tmp_path / "labels.npy", concurrent=True) as living:
        living.write_bytes(b"half")
        dead, elsewhere, old = (tmp_path / f".images.npy.{who}-0123abcd.tmp" for who in (platform.node(), "an", "old"))
        for path in (dead, elsewhere, old, tmp_path / "images.npy"):
            path.write_bytes(b"half")
        os.utime(old, (0, 0))
        shared_work.remove_abandoned_files(tmp_path)
        assert {*tmp_path.iterdir()} == {living, elsewhere, tmp_path / "images.npy"}


def test_a_measured_folder_is_measured_again_with_other_pictures_and_can_still_become_the_default(tmp_path):
    (tmp_path / "pictures").mkdir()
    for k in range(40):
        Image.new("L", (8, 8), 6 * k).save(tmp_path / "pictures" / f"{k}.png")
    words = ["data=image_folder", "data.root=pictures", "data.image_size=8", "data.channels=1", "data.labels=none"]
    run("train", *QUICK, *words, "run_dir=run", cwd=tmp_path)
    words = ["run=run", *MANY, *SHARDS, "metrics=[kid]", "features=pixels"]
    run("evaluate", *words, cwd=tmp_path)
    assert "by another process" in run("evaluate", *words, "set_default=true", cwd=tmp_path)
    assert (tmp_path / "run" / "sampling.yaml").exists()
    before = json.loads((tmp_path / "shared" / "result.json").read_text())["kid"]
    for k in (0, 13, 27):  # not all of them are held out
        Image.new("L", (8, 8), 255).save(tmp_path / "pictures" / f"{k}.png")
    assert "the images are not those" in run("evaluate", *words, cwd=tmp_path, code=4)
    assert "by another process" not in run("evaluate", *words, "accept=[data]", cwd=tmp_path)
    assert json.loads((tmp_path / "shared" / "result.json").read_text())["kid"] != before


@pytest.mark.slow
def test_50000_digits_by_two_processes_killed_three_times(digits_run, tmp_path):
    """Each of two processes is killed, then both; the bytes are those of one process without shards."""
    words = [f"run={digits_run}", "num_images=50000", "sampler=ddim", "sampler.steps=3", "sampler.batch_size=250"]
    shards, shared, dice = ["shards=50", "out=shared"], tmp_path / "shared", random.Random(50000)
    started = time.monotonic()
    run("sample", *words, "npy=true", "out=alone", cwd=tmp_path)
    seconds = time.monotonic() - started
    two = [start("sample", *words, *shards, cwd=tmp_path) for _ in range(2)]
    for kill in ([0], [1], [0, 1]):
        time.sleep(dice.uniform(0.05, 0.15) * seconds)
        for k in kill:
            two[k].kill()
            two[k].communicate(timeout=60)
            assert two[k].returncode == -signal.SIGKILL
        print(kill, "killed at", len(list(shared.glob("shards/*.npz"))), "shards")
        for k in kill:
            two[k] = start("sample", *words, *shards, cwd=tmp_path)
    assert [process.wait(timeout=600) for process in two] == [0, 0]
    alone, together = (np.load(tmp_path / name / "images.npy") for name in ("alone", "shared"))
    assert np.array_equal(together, alone)
    digest = json.loads((shared / "manifest.json").read_text())["blake2b"]
    assert hashlib.blake2b(alone.tobytes(), digest_size=16).hexdigest() == digest
    print(digest)
