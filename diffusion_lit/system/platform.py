"""Functions of the operating system that not every system has; the rest of the package works without them."""

import errno
import math
import os
import signal
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

try:
    import fcntl
    import resource
except ImportError:  # Windows
    fcntl = resource = None

RENAMES_OPEN_FILES = os.name != "nt"


def available_signals(*names: str) -> tuple[int, ...]:
    """Return the signals of these names that this system has."""
    return tuple(getattr(signal, name) for name in names if hasattr(signal, name))


def lock(descriptor: int, wait: bool) -> None:
    """Lock an open file or folder for this process, until it is closed.

    Args:
        descriptor: of the open file or folder.
        wait: whether to wait for the lock.

    Raises:
        BlockingIOError: if another process has the lock and `wait` is false.
        OSError: if the system or the file system has no locks.
    """
    if fcntl is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def lock_byte(descriptor: int, k: int, held: bool = True) -> None:
    """Lock byte k of an open file for this process, or release it.

    NFS has these locks too.

    Raises:
        BlockingIOError: if another process has it, on some systems PermissionError.
        OSError: if the system or the file system has no locks.
    """
    if fcntl is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB if held else fcntl.LOCK_UN, 1, k)


def find_open_file(descriptor: int) -> Path | None:
    """Return where an open file is now; None if it was deleted, or if the system does not say."""
    with suppress(OSError):
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        return path if path.exists() else None
    return None


def preallocate(descriptor: int, size: int) -> None:
    """Reserve `size` bytes on the disk for an open file.

    Raises:
        OSError: if the disk has not so much space.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)


def sync_folder(folder: os.PathLike) -> None:
    """Write the entries of a folder to the disk, where a folder can be opened."""
    with suppress(PermissionError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@cache
def cpu_flags() -> frozenset[str]:
    """Return the instruction sets of the CPU by Linux' names; empty where the system does not list them."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, values = line.partition(":")
            if name.strip() in ("flags", "Features"):  # x86, ARM
                return frozenset(values.split())
    return frozenset()


def peak_memory_bytes() -> float:
    """Return the peak memory of this process since its start in bytes.

    It is NaN where the system does not count it.
    """
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit if resource else math.nan
