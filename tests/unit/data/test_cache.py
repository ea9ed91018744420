"""The file of decoded pictures: built once by processes at once, taken over when they are killed, swept, checked."""

import errno
import fcntl
import os
import platform
import random
from pathlib import Path

import numpy as np
import pytest

from diffusion_lit.data import build_lock
from diffusion_lit.data.decoding import Decoding
from diffusion_lit.data.sources.data_source import Split
from diffusion_lit.data.store import ImageStore, load_split, select_rows
from diffusion_lit.system.errors import Exit, UserError
from tests.image_sets import write_split

DECODING = Decoding(8, 1)
COUNT = 40


@pytest.fixture
def split(tmp_path) -> Split:
    return write_split(tmp_path / "in", COUNT)


def test_a_holder_that_says_nothing_is_not_waited_for_for_ever(split, tmp_path, monkeypatch, caplog):
    """Of a host that is lost a server may keep the lock."""
    monkeypatch.setattr(build_lock, "BUILDER_TIMEOUT", 0.3)
    store = load_split(split, DECODING, str(tmp_path / "cache"), "train")
    store.file.unlink()
    lock = store.file.with_suffix(".lock")
    lock.write_text("7 of 40 by process 12 of a-lost-host")
    with open(lock, "r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        again = load_split(split, DECODING, str(tmp_path / "cache"), "train")
    assert again.fingerprint == store.fingerprint
    assert "no report from process 12 of a-lost-host" in caplog.text


def test_a_lock_that_another_host_removed_is_made_again(split, tmp_path, monkeypatch):
    flock, failed = fcntl.flock, []

    def stale(*args):
        if not failed:
            failed.append(True)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return flock(*args)

    monkeypatch.setattr(fcntl, "flock", stale)
    assert len(load_split(split, DECODING, str(tmp_path / "cache"), "train")) == COUNT
    assert failed
    assert len(list((tmp_path / "cache").iterdir())) == 1


# ------------------------------------------------------------------------------------------ what killed builders leave


def test_only_what_is_dead_is_swept(split, tmp_path):
    cache, here = tmp_path / "cache", platform.node()
    cache.mkdir()
    one, two, three, four = (f"{k:016x}" for k in (1, 2, 3, 4))

    def beside(name: str, host: str = here) -> Path:
        return cache / f".{name}.{host}-0123abcd.tmp"

    gone = {beside(f"train-{one}.npy"), beside(f"stream-{one}.json"), cache / f"train-{one}.lock"}
    old = beside(f"val-{one}.npy", "another")
    kept = {beside(f"val-{two}.npy", "another"), beside("mine.npy")}
    kept |= {cache / name for name in ("notes.txt", f"train-{two}.npy", "uv.lock", "train.lock")}  # of others
    held = {beside(f"train-{three}.npy"), cache / f"train-{three}.lock"}
    for path in (*gone, old, *kept, *held):
        path.write_bytes(b"x")
    os.utime(old, (0, 0))
    begun = beside(f"train-{four}.npy")
    begun.touch()  # its builder has not locked it yet
    files = [open(path, "r+b") for path in held]  # noqa: SIM115 closed below
    for file in files:
        fcntl.flock(file, fcntl.LOCK_EX)
    made = load_split(split, DECODING, str(cache), "train").file
    for file in files:
        file.close()
    assert set(cache.iterdir()) == {*kept, *held, begun, made}


def test_a_folder_that_cannot_be_written_serves_what_it_holds(split, tmp_path, monkeypatch):
    first = load_split(split, DECODING, str(tmp_path / "cache"), "train")
    opened = os.open

    def read_only(path, flags, *mode):
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        return opened(path, flags, *mode)

    monkeypatch.setattr(os, "open", read_only)
    assert load_split(split, DECODING, str(tmp_path / "cache"), "train").fingerprint == first.fingerprint
    with pytest.raises(UserError, match=r"data\.cache_dir=.* cannot be .*: Read-only file system") as caught:
        load_split(split, DECODING, str(tmp_path / "cache"), "val")
    assert caught.value.exit_code == Exit.OUTPUT


# ------------------------------------------------------------------------------------------ damage


def read_again(split: Split, tmp_path: Path) -> ImageStore:
    store = load_split(split, DECODING, str(tmp_path / "cache"), "train")
    _ = store.fingerprint  # as a checkpoint has it
    return store


def test_no_damage_is_taken_for_pictures(split, tmp_path):
    truth = read_again(split, tmp_path)
    data, dice = truth.file.read_bytes(), random.Random(0)
    images, labels = np.array(truth.images), truth.labels
    damaged = [data[: int(len(data) * share)] for share in (0, 0.001, 0.01, 0.3, 0.9, 0.999)] + [data[:-1], data + b"x"]
    damaged += [bytes(len(data)), data[: len(data) // 2] + bytes(len(data) - len(data) // 2)]
    for _ in range(300):
        bits = bytearray(data)
        bits[dice.randrange(len(bits))] ^= 1 << dice.randrange(8)
        damaged.append(bytes(bits))
    refused, told = 0, set()
    for bits in damaged:
        truth.file.unlink()
        truth.file.write_bytes(bits)
        try:
            store = read_again(split, tmp_path)
        except UserError as error:
            told.add((str(error), error.exit_code))
            refused += 1
            continue
        np.testing.assert_array_equal(store.images, images)  # a flip that means nothing, in the spaces of a header
        np.testing.assert_array_equal(store.labels, labels)
    assert refused > 250
    assert told == {(f"{truth.file} is damaged. Remove it, and the images are decoded again.", Exit.DATA)}


def test_a_part_of_a_file_is_checked_by_itself(split, tmp_path):
    store = read_again(split, tmp_path)
    bits = bytearray(store.file.read_bytes())
    bits[store.images.offset + 39 * 64] ^= 1
    store.file.write_bytes(bits)
    again = load_split(split, DECODING, str(tmp_path / "cache"), "train")
    train, val = select_rows(again, np.arange(36)), select_rows(again, np.arange(36, 40))
    assert train.fingerprint == ImageStore(np.array(train.images), train.labels).fingerprint
    with pytest.raises(UserError, match="is damaged. Remove it"):
        _ = val.fingerprint
