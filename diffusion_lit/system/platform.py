"""What not every operating system has: where it is missing, the rest works without it."""

import errno
import math
import os
import signal
import sys
from contextlib import suppress

try:
    import fcntl
    import resource
except ImportError:  # Windows
    fcntl = resource = None

RENAMES_OPEN_FILES = os.name != "nt"


def available_signals(*names: str) -> tuple[int, ...]:
    """Those of the named signals that exist here."""
    return tuple(getattr(signal, name) for name in names if hasattr(signal, name))


def lock(descriptor: int, wait: bool) -> None:
    """Lock an open file or folder for this process, until it is closed.

    Raises:
        BlockingIOError: if another process has it, and not to `wait` was asked for.
        OSError: where system or disk have no locks.
    """
    if fcntl is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def lock_byte(descriptor: int, k: int, held: bool = True) -> None:
    """Lock byte k of a file for this process, or give it back; of the kind that NFS has
    too. Raises as `lock` does, PermissionError too if another process has it.
    """
    if fcntl is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB if held else fcntl.LOCK_UN, 1, k)


def preallocate(descriptor: int, size: int) -> None:
    """Take `size` bytes on the disk for an open file. Raises OSError if they are not there."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)


def sync_folder(folder: os.PathLike) -> None:
    """Write a folder's names to the disk, where a folder can be opened."""
    with suppress(PermissionError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def peak_memory_bytes() -> float:
    """The most memory that this process took since it began; NaN where nobody counts."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit if resource else math.nan
