"""Errors that a user can fix, and the exit codes and signals of commands."""

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from functools import partial
from typing import ClassVar

from diffusion_lit.system.console import escape_controls, escape_lines
from diffusion_lit.system.platform import available_signals


class Exit(IntEnum):
    """Exit codes of every command. 0 means success."""

    CONFIG = 2  # an unknown key, or values that do not fit
    DATA = 3  # images or labels that are missing or unreadable
    CHECKPOINT = 4  # no run, a damaged checkpoint, or one of another configuration
    OUTPUT = 5  # the output folder is not writable or in use
    NON_FINITE = 6  # non-finite loss or gradient
    INTERRUPTED = 75  # a full disk, for example; the last checkpoint is intact and can be resumed
    SIGHUP = 129
    SIGINT = 130
    SIGTERM = 143


DISK_ERRORS = {  # -> exit code and advice
    **dict.fromkeys(
        (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS),
        (Exit.INTERRUPTED, "Files that were saved before are intact. Free space, then continue"),
    ),
    **dict.fromkeys((errno.EACCES, errno.EPERM), (Exit.OUTPUT, "Get permission, or choose another file or folder")),
    **dict.fromkeys((errno.ENAMETOOLONG, errno.ELOOP), (Exit.CONFIG, "Choose another file or folder")),
}
MAX_NAME = 120  # characters of a file name in a message
STOP_SIGNALS = available_signals("SIGINT", "SIGTERM", "SIGHUP")
SAVE_SIGNALS = available_signals("SIGUSR1")  # save a checkpoint and continue
# stop signals so far; a training run checks them at its first step, should a library have swallowed the exception
PENDING_SIGNALS: list[int] = []


class UserError(Exception):
    """An error that a user can fix: it says where, what is wrong and what to do.

    Attributes:
        exit_code: exit code of the command.
    """

    def __init__(self, exit_code: Exit, message: str):
        super().__init__(message)
        self.exit_code = exit_code


class ErrorOfOneExit(UserError):
    """A UserError whose class has the exit code, `code`."""

    code: ClassVar[Exit]

    def __init__(self, message: str):
        super().__init__(self.code, message)


class ConfigError(ErrorOfOneExit):
    """A UserError about keys and values."""

    code = Exit.CONFIG


class DataError(ErrorOfOneExit):
    """A UserError about the data."""

    code = Exit.DATA


class CheckpointError(ErrorOfOneExit):
    """A UserError about a run, a checkpoint or other weights."""

    code = Exit.CHECKPOINT


class OutputError(ErrorOfOneExit):
    """A UserError about files and folders to write."""

    code = Exit.OUTPUT


def raise_faults(head: str, faults: Sequence[str], most: int | None = None) -> None:
    """Raise ConfigError with a line for each fault, at most `most` of them. Do nothing without faults."""
    if faults:
        more = [f"and {len(faults) - most} more"] if most and len(faults) > most else []
        raise ConfigError("\n  ".join([head, *faults[:most], *more]))


@contextmanager
def report_errors(when_stopped: str = "stopped; files that were saved before are kept") -> Iterator[None]:
    """Print the message of a UserError, a disk error or a signal, and exit with its code.

    Every command runs inside of it. A training run installs signal handlers of its
    own, which save a checkpoint first; until then SIGUSR1 is ignored.

    Args:
        when_stopped: what is true of the files when a signal ends the block.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        stop = partial(_stop, when_stopped)
        handlers = dict.fromkeys(STOP_SIGNALS, stop) | dict.fromkeys(SAVE_SIGNALS, signal.SIG_IGN)
        if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            del handlers[signal.SIGINT]
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    previous_hook = sys.unraisablehook
    sys.unraisablehook = partial(_on_unraisable, previous_hook)
    try:
        yield
    except UserError as error:
        print(f"error: {escape_lines(str(error))}", file=sys.stderr)
        sys.exit(int(error.exit_code))
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        name, (exit_code, advice) = escape_controls(str(error.filename or "")), DISK_ERRORS[error.errno]
        where = f"{name[:MAX_NAME]}{'...' * (len(name) > MAX_NAME)}: " if name else ""
        print(f"error: {where}{error.strerror}. {advice}", file=sys.stderr)
        sys.exit(int(exit_code))
    except KeyboardInterrupt:
        print(when_stopped, file=sys.stderr)
        sys.exit(int(Exit.SIGINT))
    finally:
        sys.unraisablehook = previous_hook
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def hold_signals() -> Iterator[None]:
    """Delay stop signals until the end of the block."""
    received: list[int] = []
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in STOP_SIGNALS:
            before[number] = signal.signal(number, lambda number, frame: received.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for number in received[:1]:
        signal.raise_signal(number)


def _stop(message: str, number: int, frame: object) -> None:
    """Handle a stop signal: record it and raise KeyboardInterrupt or SystemExit."""
    is_first = number not in PENDING_SIGNALS
    PENDING_SIGNALS.append(number)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    if is_first:
        print(f"{signal.Signals(number).name}: {message}", file=sys.stderr)
    sys.exit(128 + number)


def _on_unraisable(previous_hook: Callable, unraisable: "sys.UnraisableHookArgs") -> None:
    """Send a stop signal again if it came in a destructor or a weakref callback, where Python drops its exception."""
    if not (PENDING_SIGNALS and isinstance(unraisable.exc_value, (KeyboardInterrupt, SystemExit))):
        previous_hook(unraisable)
        return
    number = PENDING_SIGNALS[-1]
    handler = signal.getsignal(number)

    def send_again():
        if signal.getsignal(number) is not handler:  # but that of a training run, which reads PENDING_SIGNALS
            return
        if os.name == "posix":
            os.kill(os.getpid(), number)  # also ends a call in which the main thread waits
        else:
            signal.raise_signal(number)

    timer = threading.Timer(0.01, send_again)  # after the callback
    timer.daemon = True
    timer.start()
