"""Log lines and progress bars on the terminal, which do not overwrite each other."""

import logging
import os
import re
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from logging.config import dictConfig

log = logging.getLogger(__name__)
FIRST_LINE, LATER_LINES = 10, 30  # seconds between log lines of a progress bar
# what breaks lines and tables, what terminals obey, and what reverses the text after it
CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def accept_any_text() -> None:
    """Let standard output and error write what their encoding lacks as escapes."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):  # not a file, or a closed one
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def ignore_closed_pipe() -> Iterator[None]:
    """End the block quietly when `| head` closes standard output."""
    logging.raiseExceptions = False  # by which a handler reports a closed pipe
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit


def escape_controls(text: str) -> str:
    """Return text in one line, with line breaks and control characters as escapes."""

    def escape(match: re.Match) -> str:
        return match[0].encode("unicode_escape").decode()

    return CONTROLS.sub(escape, text)


def escape_lines(text: str) -> str:
    """Return text of several lines with control characters as escapes."""
    return "\n".join(map(escape_controls, text.split("\n")))


def print_text(text: str) -> None:
    """Print a text of which `| head` may read the beginning only."""
    with ignore_closed_pipe():
        print(text)


class ConsoleHandler(logging.Handler):
    """Prints log lines above a running progress bar, without wrapping long lines."""

    def __init__(self, stream=None):  # Hydra's defaults pass `stream`
        super().__init__()

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record, unless it is for the log file only."""
        import rich

        if getattr(record, "file_only", False):
            return
        with suppress(BrokenPipeError, SystemExit):  # rich exits when `| head` closes the pipe
            text = escape_lines(self.format(record))
            rich.get_console().print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)


class LogFile(logging.FileHandler):
    """train.log, in UTF-8.

    A full disk is reported once and does not end the run.
    """

    has_failed = False

    def __init__(self, filename: str, mode: str = "a"):
        super().__init__(filename, mode, encoding="utf-8", errors="backslashreplace")

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines of a record, in which names of files and classes are text."""
        return escape_lines(super().format(record))

    def handleError(self, record: logging.LogRecord) -> None:
        """Report the first line that cannot be written."""
        if not self.has_failed:
            print(f"{self.baseFilename} cannot be written: {sys.exc_info()[1]}", file=sys.stderr)
        self.has_failed = True

    def close(self) -> None:
        """Close the file, also on a full disk."""
        with suppress(OSError):
            super().close()


def log_thread_exception(error) -> None:
    """Log the exception that ended a thread of a library.

    It serves as `threading.excepthook`.
    """
    log.warning("%s ended: %s: %s", error.thread.name, error.exc_type.__name__, error.exc_value)
    log.info("", exc_info=(error.exc_type, error.exc_value, error.exc_traceback), extra={"file_only": True})


def configure_logging_without_file(job_logging: dict) -> None:
    """Configure logging by Hydra's `job_logging`, without its log file."""
    handlers = {name: handler for name, handler in job_logging["handlers"].items() if name != "file"}
    dictConfig(job_logging | {"handlers": handlers, "root": job_logging["root"] | {"handlers": list(handlers)}})


def silence_console() -> None:
    """Print warnings only and no bars, for one of several processes on a terminal.

    Log files are complete.
    """
    import rich

    rich.reconfigure(force_terminal=False)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, ConsoleHandler):
            handler.setLevel(logging.WARNING)


def progress_bar(unit: str = "step", visible: bool = True, transient: bool = False):
    """Return a rich progress bar with description, count and time left.

    Where standard output is not a terminal, it logs a line after ten seconds and
    then every half a minute instead, also while a single step takes longer.

    Args:
        unit: what is counted.
        visible: whether to show anything.
        transient: whether the bar disappears at its end.
    """
    import rich
    from rich import progress

    console = rich.get_console()
    is_logged = visible and not console.is_terminal

    class Bar(progress.Progress):
        is_over, next_line = threading.Event(), time.monotonic() + FIRST_LINE

        def start(self) -> None:
            super().start()
            if is_logged:
                threading.Thread(target=self.watch, daemon=True).start()

        def stop(self) -> None:
            super().stop()
            self.is_over.set()

        def watch(self) -> None:  # a single step may take minutes
            while not self.is_over.wait(1):
                self.log_if_due()

        def advance(self, task_id, advance: float = 1) -> None:
            super().advance(task_id, advance)
            if is_logged and not self.is_over.is_set():
                self.log_if_due()

        def log_if_due(self) -> None:
            if time.monotonic() > self.next_line and self.tasks:
                self.next_line = time.monotonic() + LATER_LINES
                log.info(format_progress(self.tasks[-1], unit))

    return Bar(
        progress.TextColumn(unit, markup=False),
        progress.MofNCompleteColumn(),
        progress.BarColumn(),
        progress.TextColumn("{task.description}", markup=False),
        progress.TimeElapsedColumn(),
        progress.TextColumn("left"),
        progress.TimeRemainingColumn(),
        console=console,
        disable=not (visible and console.is_terminal),
        transient=transient,
    )


def create_table(left: Sequence[str], right: Sequence[str]):
    """Return a rich table without borders: left-aligned columns, right-aligned ones, and a last one for remarks."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for names, side in ((left, "left"), (right, "right"), ([""], "left")):
        for name in names:
            table.add_column(name, justify=side)
    return table


def format_progress(task, unit: str) -> str:
    """Return a rich task as a log line: what is counted, how far it is, its description, the time left."""
    total = "" if task.total is None else f"/{task.total:g}"
    counted = f" {task.completed:g}{total}" if task.completed or total else ""
    elapsed, left = task.elapsed or 0, task.time_remaining
    ends = f"{format_duration(elapsed)} so far" if left is None else f"about {format_duration(left)} left"
    return " | ".join(filter(None, [f"{task.fields.get('unit', unit)}{counted}", task.description, ends]))


@contextmanager
def announce(work: str) -> Iterator[None]:
    """Show that work of unknown length goes on: a bar on a terminal, else a log line every half a minute."""
    with progress_bar(work, transient=True) as bar:
        bar.add_task("", total=None)
        yield


def format_duration(seconds: float) -> str:
    """Return a duration in its two largest units: "3 h 20 min", "12 min", "45 s"."""
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours < 2:
        return f"{60 * hours + minutes} min"
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} days {hours % 24} h" if hours < 240 else f"{hours / 24:.0f} days"


def join_names(names: Iterable[str], most: int = 10) -> str:
    """Return the first names in one line, and how many more there are."""
    names = list(map(escape_controls, names))
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
