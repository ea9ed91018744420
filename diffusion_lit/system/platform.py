"""Functions of the operating system that not every system has; the rest of the package works without them."""

import ctypes
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

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt, malloc.h
KEPT_BYTES = 2**30  # larger blocks, and more free memory than this at the end of the heap, go back to the system
ALLOCATOR = "DIFFUSION_LIT_MALLOC"  # environment variable; "system" leaves the allocator as it is
OWN_SETTINGS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES")
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


def to_file_text(text: str) -> str:
    """Return the name of a file as Python lists it: UTF-8 on the disk, whatever the locale (PYTHONUTF8=0)."""
    return os.fsdecode(text.encode("utf-8", "surrogateescape"))


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


def keep_freed_memory() -> bool:
    """Let glibc reuse freed tensors instead of returning their memory to the system.

    By default blocks above a threshold of at most 32 MiB are mapped again for
    every tensor, and the kernel fills each page with zeros at its first use.
    Called before torch is imported. Nothing happens on other systems, with
    another C library, with `DIFFUSION_LIT_MALLOC=system`, or if the user has
    set glibc's own variables.

    Returns:
        Whether glibc accepted the settings.
    """
    libc = _glibc()
    if libc is None or os.environ.get(ALLOCATOR) == "system" or any(name in os.environ for name in OWN_SETTINGS):
        return False
    sizes = (KEPT_BYTES, 32 * 2**20)  # older versions refuse thresholds above 32 MiB
    return any(libc.mallopt(M_MMAP_THRESHOLD, size) for size in sizes) and bool(
        libc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
    )


def return_freed_memory() -> None:
    """Return the memory of freed blocks to the system, where the C library is glibc."""
    if libc := _glibc():
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    """Return the C library of this process if it is glibc."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        libc = ctypes.CDLL(None)
    except OSError:
        return None
    return libc if all(hasattr(libc, name) for name in ("gnu_get_libc_version", "mallopt", "malloc_trim")) else None
