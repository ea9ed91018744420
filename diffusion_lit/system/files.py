"""Files that are written atomically: a reader sees the old content or the new, never a part of it."""

import hashlib
import os
import platform
import re
import secrets
import time
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from diffusion_lit.system import platform as platforms
from diffusion_lit.system.console import CONTROLS, escape_controls
from diffusion_lit.system.errors import OutputError

ABANDONED_AFTER = 24 * 3600  # seconds without a change, whatever host was writing


@contextmanager
def write_atomically(path: Path, concurrent: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which is renamed to `path` at the end, or removed after an exception.

    Args:
        path: the file to write or replace.
        concurrent: whether several processes, also of other hosts, may write it at
            once. Each has a temporary file of its own then, with a lock that falls
            with the process, by which `is_abandoned` recognizes the file of a
            killed process.

    Raises:
        UserError: exit 5 if `path` is a device, a pipe or a folder, which root
            could replace.
    """
    if path.exists() and not path.is_file():
        raise OutputError(f"{path} is not a regular file: choose another name")
    suffix = f".{platform.node()}-{secrets.token_hex(4)}" if concurrent else ""
    temporary = path.with_name(f".{path.name}{suffix}.tmp")
    try:
        with open(temporary, "xb" if concurrent else "wb") as file:
            if concurrent:
                with suppress(OSError):  # without locks, a leftover is removed a day later
                    platforms.lock(file.fileno(), wait=True)
            yield temporary
            os.fsync(file.fileno())  # before renaming, or a host that crashes leaves an empty file
            if not platforms.RENAMES_OPEN_FILES:
                file.close()
            os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def write_text_atomically(path: Path, text: str) -> None:
    """Write or replace a text file atomically, in UTF-8.

    Bytes of file names that are no UTF-8 stay what they are.
    """
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


def digest_text(text: str) -> str:
    """Return the BLAKE2b digest of a text, 16 hex digits."""
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8).hexdigest()


def normalize_name(name: str) -> str:
    """Return a name as it is compared: in NFC, in one line, and one of bytes that are no UTF-8 as Latin-1."""
    if not name.isascii():
        data = name.encode("utf-8", "surrogateescape")
        try:
            name = data.decode("utf-8")
        except UnicodeDecodeError:
            name = data.decode("latin-1")
    return escape_controls(unicodedata.normalize("NFC", name))


def to_file_name(name: str) -> str:
    """Return the beginning of a name without what a file name may not have on some system."""
    return re.sub(r'[<>:"/\\|?*]', "_", CONTROLS.sub("_", name))[:50]


def require_working_directory() -> None:
    """Raise UserError (exit 5) if the working directory was deleted."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise OutputError("the working directory was deleted. Change to another one: cd ~") from None


def is_abandoned(temporary: Path) -> bool:
    """Return whether the process that wrote a concurrent temporary file of `write_atomically` is gone.

    On this host its lock says so. A file of another host must be a day old.

    Raises:
        OSError: if it cannot be known.
    """
    state, host = temporary.stat(), temporary.name.removesuffix(".tmp").rpartition("-")[0]
    if time.time() - state.st_mtime > ABANDONED_AFTER:
        return True
    # an empty file of this host belongs to a process that is about to lock it
    return host.endswith(f".{platform.node()}") and state.st_size > 0 and is_unlocked(temporary)


def is_unlocked(path: Path) -> bool:
    """Return whether no process holds the lock of a file.

    Raises:
        OSError: if it cannot be known.
    """
    file = os.open(path, os.O_RDWR)
    try:
        platforms.lock(file, wait=False)
        return is_same_file(file, path)
    except BlockingIOError:
        return False
    finally:
        os.close(file)


def is_same_file(file: int, path: Path) -> bool:
    """Return whether an open file is still the one at this path: its holder may have removed or replaced it."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file), os.stat(path))
    return False
