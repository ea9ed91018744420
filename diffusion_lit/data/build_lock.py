"""A file that many processes and hosts want is built by one of them, while the others wait for it.

A builder writes a file of its own and renames it when it is whole, so nobody ever sees half of one, and two builders do
no harm. The lock only saves the second one the work: where a file system has no locks, or the host that holds one is
lost and never gives it back, the others build for themselves.
"""

import errno
import logging
import math
import os
import platform
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from diffusion_lit.system import platform as platforms
from diffusion_lit.system.console import progress_bar
from diffusion_lit.system.errors import Exit, UserError
from diffusion_lit.system.files import is_abandoned, is_same_file, is_unlocked, write_atomically

log = logging.getLogger(__name__)
TOLD_EVERY = 2  # seconds between two words of a builder to those who wait
SILENT = 600  # seconds without a word, after which they build for themselves
OURS = re.compile(r"\.?(train|val|stream|parts)-[0-9a-f]{16}\.(lock|(npy|json)\..+-[0-9a-f]{8}\.tmp)")
Tell = Callable[[int, int | None], None]  # how many pictures are done, of how many if that is known


def built_once(path: Path, build: Callable[[Path, Tell], None]) -> None:
    """Have `build` write the file, unless it is there or another process, here or on another host, is building it.

    Raises:
        UserError: exit 5 for a folder that cannot be written.
    """
    if path.exists():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _turn(path) as tell:
            if tell is None:
                return
            _sweep(path.parent)
            with write_atomically(path, many=True) as building:
                build(building, tell)
    except OSError as error:
        where = f"data.cache_dir={path.parent} cannot be made or written"
        raise UserError(Exit.OUTPUT, f"{where}: {error.strerror or error}") from None


# ------------------------------------------------------------------------------------------------ whose turn it is


@contextmanager
def _turn(path: Path) -> Iterator[Tell | None]:
    """Wait until nobody else builds `path`. Yields what tells the others how far it is; None: the file has come."""
    lock = path.with_suffix(".lock")
    file = _locked(lock, path)
    try:
        yield None if path.exists() else _teller(file)
    finally:
        if file is not None:
            lock.unlink(missing_ok=True)  # while it is held; who waits for it notices, see `is_at`
            os.close(file)


def _locked(lock: Path, path: Path) -> int | None:
    """The descriptor of the locked file; None if the pictures have come, or there are no locks to be had."""
    words, seen, since, bar = b"", b"", time.monotonic(), None
    try:
        while not path.exists():
            file = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                platforms.lock(file, wait=False)
                if is_same_file(file, lock):
                    return file
                os.close(file)
                continue
            except BlockingIOError:
                with suppress(OSError):  # removed by another host meanwhile
                    words = os.pread(file, 200, 0)
                os.close(file)
            except OSError as error:
                os.close(file)
                if error.errno == errno.ESTALE:  # removed by another host
                    continue
                lock.unlink(missing_ok=True)
                log.info("%s has no locks (%s): each process decodes for itself", lock.parent, error.strerror)
                return None
            if words != seen:
                seen, since = words, time.monotonic()
            elif time.monotonic() - since > SILENT:
                told = "%s: nothing was heard of %s for %d minutes; building it here"
                log.warning(told, path.name, _builder(seen) or "its builder", SILENT // 60)
                return None
            bar = bar or _Waiting(path)
            bar.show(words)
            time.sleep(0.1)
    finally:
        if bar:
            bar.close()
    return None


def _teller(file: int | None) -> Tell:
    last = -math.inf

    def tell(done: int, total: int | None) -> None:
        nonlocal last
        if file is not None and time.monotonic() - last > TOLD_EVERY:
            last = time.monotonic()
            words = f"{done} of {total or 0} by process {os.getpid()} of {platform.node()}"
            with suppress(OSError):  # a full disk; then they see nothing move
                os.pwrite(file, words.ljust(200).encode(errors="replace")[:200], 0)

    tell(0, None)
    return tell


def _builder(words: bytes) -> str:
    return words.decode(errors="replace").partition(" by ")[2].strip()


class _Waiting:
    """What is shown of another's build."""

    def __init__(self, path: Path):
        self.path, self.done, self.told = path, 0, False
        self.bar = progress_bar(f"waiting for {path.name.partition('-')[0]}", transient=True)
        self.task = self.bar.add_task("", total=None)
        self.bar.start()

    def show(self, words: bytes) -> None:
        found = re.match(rb"(\d+) of (\d+) by ", words)
        if found and not self.told:
            self.told = True
            log.info("%s is being built by %s: waiting for it", self.path, _builder(words))
        done, total = (int(found[1]), int(found[2]) or None) if found else (self.done, None)
        self.bar.update(self.task, total=total)
        self.bar.advance(self.task, done - self.done)
        self.done = done

    def close(self) -> None:
        self.bar.stop()


def _sweep(folder: Path) -> None:
    """Remove what killed builders left: of this host what nobody holds any longer, and all that is a day old."""
    for file in folder.iterdir():
        with suppress(OSError):  # the folder may hold other things, with locks of their own
            if OURS.fullmatch(file.name) and (is_unlocked if file.suffix == ".lock" else is_abandoned)(file):
                file.unlink()
