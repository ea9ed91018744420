"""Files that have their name only when they are whole: a reader sees the old one or the new, never half of it."""

import os
import platform
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from diffusion_lit.system import platform as platforms

UNTOUCHED = 24 * 3600  # seconds, after which what any host was writing is taken for dead


@contextmanager
def write_atomically(path: Path, many: bool = False) -> Iterator[Path]:
    """A file beside `path`, to write to; it takes its place when it is whole, and is
    gone if anything was raised.

    Where `many` processes, here or on other hosts, may write the same at a time, each
    has a name of its own, and a lock on it that falls with the process: by that
    `is_abandoned` knows what one that was killed has left.
    """
    own = f".{platform.node()}-{secrets.token_hex(4)}" if many else ""
    beside = path.with_name(f".{path.name}{own}.tmp")
    try:
        with open(beside, "xb" if many else "wb") as file:
            if many:
                with suppress(OSError):  # no locks here; who sweeps up then lets it lie for a day
                    platforms.lock(file.fileno(), wait=True)
            yield beside
            os.fsync(file.fileno())  # a host that crashes after the renaming leaves no file of zeros under the name
            if not platforms.RENAMES_OPEN_FILES:
                file.close()
            os.replace(beside, path)
    except BaseException:
        with suppress(OSError):
            beside.unlink()
        raise


def write_text_atomically(path: Path, text: str) -> None:
    with write_atomically(path) as beside:
        beside.write_text(text)


def is_abandoned(beside: Path) -> bool:
    """Return whether the process that wrote this temporary file of `write_atomically`
    is gone.

    On this host that is known from its lock, on any other host the file must be a day
    old.

    Raises:
        OSError: if that cannot be known.
    """
    state, host = beside.stat(), beside.name.removesuffix(".tmp").rpartition("-")[0]
    if time.time() - state.st_mtime > UNTOUCHED:
        return True
    # an empty one of this host has a writer who is about to lock it
    return host.endswith(f".{platform.node()}") and state.st_size > 0 and is_unlocked(beside)


def is_unlocked(path: Path) -> bool:
    """Whether no process holds a file. Raises OSError if that cannot be known."""
    file = os.open(path, os.O_RDWR)
    try:
        platforms.lock(file, wait=False)
        return is_same_file(file, path)
    except BlockingIOError:
        return False
    finally:
        os.close(file)


def is_same_file(file: int, path: Path) -> bool:
    """Whether an open file still has this name: whoever held it may have removed it, and another one may be there."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file), os.stat(path))
    return False
