"""Output folders and files of the commands. Files of others are never overwritten, and one process writes at a time.

<out>/.lock      held by the process that writes
<out>/.partial   files that are not complete yet: moved to <out> at the end, after a kill continued or removed
"""

import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from diffusion_lit.runs import run_dir, run_lock
from diffusion_lit.system.errors import OutputError
from diffusion_lit.system.files import write_atomically, write_text_atomically

log = logging.getLogger(__name__)
LOCK, PARTIAL = ".lock", ".partial"
REQUEST = "request.json"  # in <out>/.partial: what its files are for


def make_folder(out: Path) -> Path:
    """Make a folder if it is missing and return it.

    Raises UserError (exit 5) if it cannot.
    """
    out = out.expanduser()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        is_other = isinstance(error, FileExistsError | NotADirectoryError)  # a file, a pipe, a dead link
        fault = "not a folder. Choose a new one" if is_other else error.strerror
        raise OutputError(f"out={out} cannot be made: {fault}") from None
    return out


def make_timestamp() -> str:
    """Return the time and four random digits, for the name of a new folder."""
    return f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{secrets.token_hex(2)}"


def choose_folder(out: str | None, run: Path, kind: str) -> Path:
    """Return the folder for the output of a command.

    Args:
        out: the folder. If None: a new one in `run`/`kind`, or in outputs/`kind` if
            `run` is a published model, which is not changed.
        run: the run that the command reads.
        kind: name of the subfolder.
    """
    if out:
        return Path(out).expanduser()
    home = run if (run / "checkpoints").is_dir() else Path("outputs")
    run_dir.remove_leftovers(home / kind, (LOCK, PARTIAL))
    return home / kind / make_timestamp()


@contextmanager
def fill_folder(
    out: Path, marker: str, replaces: Collection[str] | None = None, request: dict | None = None
) -> Iterator[Path]:
    """Yield a folder to fill, whose files are moved to `out` when all are complete. After an exception none are.

    Args:
        out: a new or empty folder.
        marker: the file that only this command writes, moved last.
        replaces: if not None, `out` may be a folder that has the marker. These
            files of it are removed where they are not made again.
        request: what is made. The files that a killed process left for an equal one
            are kept.

    Raises:
        UserError: exit 5 if `out` has files of others, is in use or cannot be made.
    """
    out = out.expanduser()
    require_available(out, marker, replaces)
    is_new = not out.exists()
    try:
        lock = run_lock.RunLock(make_folder(out))
    except OSError as error:
        raise OutputError(f"out={out} cannot be written to: {error.strerror}") from None
    partial = out / PARTIAL
    try:
        require_available(out, marker, replaces)  # another process may have filled it before this one had the lock
        _prepare(partial, request)
        yield partial
        (partial / REQUEST).unlink(missing_ok=True)
        if replaces is not None and (out / marker).exists():
            log.info("replaced   an earlier result in %s", run_dir.display_path(out))
        for name in replaces or ():
            (out / name).unlink(missing_ok=True)
        for path in sorted(partial.iterdir(), key=lambda path: path.name == marker):
            os.replace(path, out / path.name)
        partial.rmdir()
    except BaseException:
        if request is None:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        lock.release(remove=not partial.exists())  # else it says that nobody is at work on what is there
        if is_new:
            with suppress(OSError):
                out.rmdir()


def final_folder(folder: Path) -> Path:
    """Return where the files of a folder will be: of one that `fill_folder` yields, the folder around it."""
    return folder.parent if folder.name == PARTIAL else folder


def require_available(out: Path, marker: str, replaces: Collection[str] | None = None) -> None:
    """Raise UserError (exit 5) if a folder has files that are not of a command with this marker."""
    try:
        names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    except OSError as error:
        raise OutputError(f"out={out} cannot be read: {error.strerror}") from None
    is_ours = PARTIAL in names or (replaces is not None and marker in names)  # a kill while the files were moved
    if names - {LOCK} and not is_ours:
        hint = f", and has no {marker} that shows a result to replace" if replaces is not None else ""
        raise OutputError(f"out={out} is not empty{hint}. Choose a new folder")


def _prepare(partial: Path, request: dict | None) -> None:
    """Make the folder of incomplete files, or keep the one of an equal request."""
    text = json.dumps(request, sort_keys=True, default=str)
    with suppress(OSError, ValueError):
        if request is not None and (partial / REQUEST).read_text(encoding="utf-8") == text:
            return
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    if request is not None:
        write_text_atomically(partial / REQUEST, text)


def write_page(out: Path, text: str, mark: str) -> None:
    """Write a text file, or replace one that has `mark` in its first kilobyte.

    Raises:
        UserError: exit 5 if there is another file, or if it cannot be written.
    """
    try:
        out = out.resolve()  # through links
        if out.is_file():
            with open(out, "rb") as file:
                is_ours = mark.encode() in file.read(1024)
        else:
            is_ours = not out.exists()
        if not is_ours:
            raise OutputError(f"out={out} exists and is not such a page. Choose a new file")
        out.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(out, concurrent=True) as beside:
            beside.write_text(text, encoding="utf-8")
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise OutputError(f"out={out} cannot be written: {getattr(error, 'strerror', error)}") from None
