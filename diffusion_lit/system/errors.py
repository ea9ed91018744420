"""One error type for everything a user can mend, and the exit code each kind ends with."""

import errno
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

from diffusion_lit.system.platform import available_signals


class Exit(IntEnum):
    """Exit codes of every command (0 is the planned end)."""

    CONFIG = 2  # a key, a value or a combination that cannot work
    DATA = 3  # no such folder, an unreadable picture, labels that do not fit
    CHECKPOINT = 4  # no run there, a checkpoint that is broken or belongs to another configuration
    OUTPUT = 5  # the run folder cannot be written or is in use
    NON_FINITE = 6  # the loss is no longer a number
    INTERRUPTED = 75  # a full disk, say; the last checkpoint is good: mend it and resume
    SIGHUP = 129
    SIGINT = 130
    SIGTERM = 143


DISK_ERRORS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
}  # of the operating system

STOP_SIGNALS = available_signals("SIGINT", "SIGTERM", "SIGHUP")
SAVE_SIGNALS = available_signals("SIGUSR1")  # and going on
PENDING_SIGNALS: list[
    int
] = []  # signals that were to end the command; a run that trains all the same ends at its first step


class UserError(Exception):
    """What is wrong, where (file, key, value) and what to do, for a person; ends the command with `exit_code`."""

    def __init__(self, exit_code: Exit, message: str):
        super().__init__(message)
        self.exit_code = exit_code


class DataError(UserError):
    """A UserError about the data; the command exits with `Exit.DATA`."""

    def __init__(self, message: str):
        super().__init__(Exit.DATA, message)


@contextmanager
def report_errors() -> Iterator[None]:
    """Turn a UserError, a full or read-only disk, or a signal into its message and exit
    code; the outermost line of every command.

    A run that trains has handlers of its own, which save first; before it does, SIGUSR1
    finds nothing to save.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        handlers = dict.fromkeys(STOP_SIGNALS, _stop) | dict.fromkeys(SAVE_SIGNALS, signal.SIG_IGN)
        if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            del handlers[signal.SIGINT]
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(int(error.exit_code))
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        where = f"{error.filename}: " if error.filename else ""
        told = f"error: {where}{error.strerror}; what was saved before is whole: make room or get the right to write"
        print(f"{told}, then go on", file=sys.stderr)
        sys.exit(int(Exit.INTERRUPTED))
    except KeyboardInterrupt:
        print("stopped; what was saved before is kept", file=sys.stderr)
        sys.exit(int(Exit.SIGINT))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def hold_signals() -> Iterator[None]:
    """A signal that would end the command waits until this is done."""
    heard: list[int] = []
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, lambda number, frame: heard.append(number)) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for number in heard[:1]:
        signal.raise_signal(number)


def _stop(number: int, frame: object) -> None:
    """Raise what ends the command. Libraries that catch everything can lose it, so it is written down too."""
    PENDING_SIGNALS.append(number)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    print(f"{signal.Signals(number).name}: stopped; what was saved before is kept", file=sys.stderr)
    sys.exit(128 + number)
