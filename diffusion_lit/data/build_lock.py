"""Build a file once for many processes and hosts: one builds, the others wait for it.

A builder writes a temporary file and renames it when it is complete, so no
process ever reads half a file, and two builders do no harm. The lock only saves
the second one the work: where a file system has no locks, or the host that
holds one is lost, the others build for themselves. The builder writes its
progress into the lock file.
"""

import errno
import logging
import math
import os
import platform
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from diffusion_lit.system import platform as platforms
from diffusion_lit.system.console import progress_bar
from diffusion_lit.system.errors import OutputError
from diffusion_lit.system.files import is_abandoned, is_same_file, is_unlocked, write_atomically

log = logging.getLogger(__name__)
REPORT_INTERVAL = 2  # seconds between two reports of a builder
BUILDER_TIMEOUT = 600  # seconds without a report, after which a waiting process builds for itself
STATUS = re.compile(r"(\d+) of (\d+) by (.*\S)")
OWN_FILES = re.compile(r"\.?(train|val|stream|parts|text|colors)-[0-9a-f]{16}\.(lock|(npy|json)\..+-[0-9a-f]{8}\.tmp)")
ReportProgress = Callable[[int, int | None], None]  # images done, and their total if it is known


def build_once(path: Path, build: Callable[[Path, ReportProgress], None]) -> None:
    """Let `build` write the file, unless it exists or another process, here or on another host, builds it.

    Raises:
        UserError: exit 5 if the folder cannot be written.
    """
    if path.exists():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_suffix(".lock")
        file = _acquire_lock(lock, path)
        try:
            if not path.exists():
                _remove_leftovers(path.parent)
                with write_atomically(path, concurrent=True) as building:
                    build(building, _progress_reporter(file))
        finally:
            if file is not None:
                lock.unlink(missing_ok=True)  # while it is held; a waiting process notices, see `is_same_file`
                os.close(file)
    except OSError as error:
        message = f"data.cache_dir={path.parent} cannot be written: {error.strerror or error}"
        raise OutputError(message) from None


def _acquire_lock(lock: Path, path: Path) -> int | None:
    """Return the descriptor of the locked file; None if `path` exists by then, or without a usable lock."""
    status, last_change, waiting = "", time.monotonic(), None
    try:
        while not path.exists():
            before, file = status, os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                platforms.lock(file, wait=False)
                if is_same_file(file, lock):
                    return file
                os.close(file)
                continue
            except BlockingIOError:
                with suppress(OSError):  # removed by another host meanwhile
                    status = os.pread(file, 200, 0).decode(errors="replace")
                os.close(file)
            except OSError as error:
                os.close(file)
                if error.errno == errno.ESTALE:  # removed by another host
                    continue
                lock.unlink(missing_ok=True)
                log.info("%s has no locks (%s): each process decodes for itself", lock.parent, error.strerror)
                return None
            waiting = waiting or _WaitingBar(path)
            waiting.update(status)
            if status != before:
                last_change = time.monotonic()
            elif time.monotonic() - last_change > BUILDER_TIMEOUT:
                minutes = BUILDER_TIMEOUT // 60
                log.warning("%s: no report from %s for %d minutes, building it here", path, waiting.builder, minutes)
                return None
            time.sleep(0.1)
    finally:
        if waiting:
            waiting.bar.stop()
    return None


def _progress_reporter(file: int | None) -> ReportProgress:
    last = -math.inf

    def report(done: int, total: int | None) -> None:
        nonlocal last
        if file is not None and time.monotonic() - last > REPORT_INTERVAL:
            last = time.monotonic()
            status = f"{done} of {total or 0} by process {os.getpid()} of {platform.node()}"
            with suppress(OSError):  # a full disk; waiting processes then see no progress
                os.pwrite(file, status.ljust(200).encode(errors="replace")[:200], 0)

    report(0, None)
    return report


class _WaitingBar:
    """The progress of another process's build."""

    def __init__(self, path: Path):
        self.path, self.done, self.builder = path, 0, None
        self.bar = progress_bar(f"waiting for {path.name.partition('-')[0]}", transient=True)
        self.task = self.bar.add_task("", total=None)
        self.bar.start()

    def update(self, status: str) -> None:
        """Show the status that the builder wrote last."""
        match = STATUS.match(status)
        if match and not self.builder:
            self.builder = match[3]
            log.info("%s is being built by %s: waiting for it", self.path, self.builder)
        done, total = (int(match[1]), int(match[2]) or None) if match else (self.done, None)
        self.bar.update(self.task, total=total)
        self.bar.advance(self.task, done - self.done)
        self.done = done


def _remove_leftovers(folder: Path) -> None:
    """Remove files of killed builders: those of this host that no process holds, and any that are a day old."""
    for file in folder.iterdir():
        with suppress(OSError):  # the folder may hold other files, with locks of their own
            if OWN_FILES.fullmatch(file.name) and (is_unlocked if file.suffix == ".lock" else is_abandoned)(file):
                file.unlink()
