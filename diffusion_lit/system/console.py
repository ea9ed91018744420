"""What the terminal shows: log lines and progress bars that do not run into each other."""

import logging
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from logging.config import dictConfig

log = logging.getLogger(__name__)
FIRST_LINE, LATER_LINES = 10, 60  # seconds


class ConsoleHandler(logging.Handler):
    """Log lines on standard output, above a progress bar where one is running; long lines are left whole."""

    def __init__(self, stream=None):  # `stream` comes from Hydra's defaults and is not used
        super().__init__()

    def emit(self, record: logging.LogRecord) -> None:
        import rich

        if getattr(record, "in_bar", False):  # a progress bar shows it already; only the log file needs the line
            return
        with suppress(BrokenPipeError, SystemExit):  # `train | head`: rich wants to exit when nobody reads on
            rich.get_console().print(self.format(record), markup=False, highlight=False, soft_wrap=True)


class LogFile(logging.FileHandler):
    """train.log. That it cannot be written, on a full disk, is told once and ends nothing."""

    told = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self.told:
            print(f"{self.baseFilename} cannot be written: {sys.exc_info()[1]}", file=sys.stderr)
        self.told = True

    def close(self) -> None:
        with suppress(OSError):
            super().close()


def log_thread_exception(error) -> None:
    """As `threading.excepthook`: what ends a thread of a library (TensorBoard, a full disk) is a line of the log."""
    log.warning("%s ended: %s: %s", error.thread.name, error.exc_type.__name__, error.exc_value)
    log.info("", exc_info=(error.exc_type, error.exc_value, error.exc_traceback), extra={"in_bar": True})


def configure_logging_without_file(job_logging: dict) -> None:
    """Set logging up as Hydra does by its `job_logging`, but for the log file."""
    handlers = {name: handler for name, handler in job_logging["handlers"].items() if name != "file"}
    dictConfig(job_logging | {"handlers": handlers, "root": job_logging["root"] | {"handlers": list(handlers)}})


def silence_console() -> None:
    """In a process beside others on one terminal: no bars, and of log lines only warnings; log files get them all."""
    import rich

    rich.reconfigure(force_terminal=False)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, ConsoleHandler):
            handler.setLevel(logging.WARNING)


def progress_bar(unit: str = "step", shown: bool = True, transient: bool = False):
    """A rich progress bar: description, count, speed, time left.

    Where standard output is no terminal, a line of the log after ten seconds and then
    every minute.
    """
    import rich
    from rich import progress

    console = rich.get_console()

    class Bar(progress.Progress):
        next_line = time.monotonic() + FIRST_LINE

        def advance(self, task_id, advance: float = 1) -> None:
            super().advance(task_id, advance)
            if self.disable and shown and time.monotonic() > self.next_line:
                self.next_line = time.monotonic() + LATER_LINES
                task = next(task for task in self.tasks if task.id == task_id)
                total = "" if task.total is None else f"/{task.total:g}"
                left = "" if task.time_remaining is None else f", about {format_duration(task.time_remaining)} left"
                log.info("%s %g%s%s", task.fields.get("unit", unit), task.completed, total, left)

    return Bar(
        progress.TextColumn(unit),
        progress.MofNCompleteColumn(),
        progress.BarColumn(),
        progress.TextColumn("{task.description}"),
        progress.TimeElapsedColumn(),
        progress.TextColumn("left"),
        progress.TimeRemainingColumn(),
        console=console,
        disable=not (shown and console.is_terminal),
        transient=transient,
    )


def format_duration(seconds: float) -> str:
    """In its two largest units: "3 h 20 min", "12 min", "45 s"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} days {hours % 24} h" if hours < 240 else f"{hours / 24:.0f} days"


def join_names(names: Iterable[str], most: int = 10) -> str:
    """Return the first names, and how many more there are."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
