"""The lock of a run folder, and what became of a folder that was moved while it was locked."""

import os
import socket
import time
from pathlib import Path

from diffusion_lit.config.overrides import format_command, format_override
from diffusion_lit.runs.run_dir import display_path
from diffusion_lit.system.errors import Exit, OutputError, UserError
from diffusion_lit.system.files import is_same_file
from diffusion_lit.system.platform import find_open_file, lock


class RunLock:
    """Lock of a run folder, or of another folder that one process writes. It is released when the process ends.

    Raises:
        UserError: exit 5 if another process holds it.
    """

    def __init__(self, run: Path):
        self.path, self.file = run / ".lock", None
        while self.file is None or not is_same_file(self.file.fileno(), self.path):  # its holder may have removed it
            self.file = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115 open as long as the lock is held
            try:
                lock(self.file.fileno(), wait=False)
            except BlockingIOError:
                self.file.seek(0)
                holder = self.file.read().strip() or "another process"
                self.file.close()
                raise OutputError(f"{run} is in use by {holder}. Wait for it, or stop it first") from None
            except OSError:  # a file system without locks: nothing keeps two processes apart
                pass
        self.file.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M")
        self.file.write(f"process {os.getpid()} on {socket.gethostname()} since {since}\n")
        self.file.flush()

    def is_in_place(self) -> bool:
        """Return whether the folder is still where it was when it was locked."""
        return is_same_file(self.file.fileno(), self.path)

    def raise_if_moved(self, error: BaseException) -> None:
        """Raise UserError (exit 5) in place of an error, if somebody moved or deleted the folder."""
        if self.is_in_place():
            return
        if getattr(error, "exit_code", None) == Exit.OUTPUT:  # it says so already
            raise error
        run = self.path.parent
        raise describe_moved_run(run, find_moved_run(self.file.fileno(), run)) from error

    def release(self, remove: bool = False) -> None:
        """Release the lock, and with `remove` delete its file."""
        self.file.truncate(0)
        if remove and self.is_in_place():
            self.path.unlink()
        self.file.close()


def find_moved_run(lock_file: int, run: Path) -> Path | None:
    """Return where the folder of a lock file is now: `run` unless somebody moved it, None if it was deleted."""
    if is_same_file(lock_file, run / ".lock"):
        return run
    return (path := find_open_file(lock_file)) and path.parent


def describe_moved_run(run: Path, moved: Path | None, saved: str = "") -> UserError:
    """Return the error about a run folder that somebody moved or deleted during the run.

    Args:
        run: where it was.
        moved: where it is now, None if it was deleted.
        saved: what the run saved before it stopped, for example "at step 40, saved".
    """
    if moved is None:
        hint = "Nothing more was written. Restore it and resume, or start a new run"
        return OutputError(f"{run} was deleted, or moved to another disk, during the run. {hint}")
    where = f"{display_path(run)} was moved to {display_path(moved)} during the run, which stopped {saved}".rstrip()
    command = format_command("train", format_override("resume", display_path(moved)))
    return OutputError(f"{where}. To continue: {command}")
