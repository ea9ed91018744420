"""Share work among any number of processes on any number of hosts that have only a folder in common.

The work consists of tasks that each write a file. A process takes a task whose file
is missing and whose lock is free, until all files exist. The operating system
releases the lock of a killed process, and files are written atomically, so
processes may be killed and started again at any time.
"""

import errno
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from diffusion_lit.runs import checkpoints, output
from diffusion_lit.runs.resume import flatten_config
from diffusion_lit.system.errors import OutputError
from diffusion_lit.system.files import is_abandoned, write_atomically
from diffusion_lit.system.platform import lock_byte

POLL_SECONDS = 0.5


def share_work(
    lock: Path,
    count: int,
    is_done: Callable[[int], bool],
    make: Callable[[int], None],
    report: Callable[[int], None] = lambda done: None,
) -> None:
    """Do tasks 0 to `count` - 1 together with every process that calls this with the same lock file.

    Returns when all are done. Without locks (some network file systems) a task may
    be done twice, which only costs time. Processes take the tasks in different
    orders to make that rare.

    Args:
        lock: file of which byte k is locked during task k.
        count: number of tasks.
        is_done: whether the file of task k exists.
        make: does task k.
        report: called with the number of tasks done, before each task and each
            wait.
    """
    order = random.SystemRandom().sample(range(count), count)
    with open(lock, "ab") as file:
        while missing := [k for k in order if not is_done(k)]:
            report(count - len(missing))
            if not any(_try_task(file, k, is_done, make) for k in missing):
                time.sleep(POLL_SECONDS)


def _try_task(file, k: int, is_done: Callable[[int], bool], make: Callable[[int], None]) -> bool:
    """Do task k and return True, unless another process has done it or is doing it."""
    with _try_lock(file, k) as is_locked:
        if not is_locked or is_done(k):
            return False
        make(k)
        return True


@contextmanager
def _try_lock(file, k: int) -> Iterator[bool]:
    """Lock byte k if it is free, and yield whether it was.

    NFS has these locks too.
    """
    try:
        lock_byte(file.fileno(), k)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            yield False
            return
    try:
        yield True
    finally:
        with suppress(OSError):
            lock_byte(file.fileno(), k, held=False)


def claim_folder(plan: dict, out: Path) -> None:
    """Write plan.json, which says what a folder is for, or check that the one there is equal.

    Raises:
        UserError: exit 5 if the plan differs, the folder holds other files, or it
            cannot be made.
    """
    file = out / "plan.json"

    def write_plan(_: int) -> None:
        if any(not path.name.startswith(".") for path in out.iterdir()) and not file.exists():
            raise OutputError(f"out={out} is not empty and holds no shards. Choose a new folder")
        write_json(file, plan)

    output.make_folder(out)
    share_work(out / ".lock", 1, lambda _: file.exists(), write_plan)
    try:
        before, now = flatten_config(json.loads(file.read_bytes())), flatten_config(json.loads(json.dumps(plan)))
    except (ValueError, AttributeError) as error:
        raise OutputError(f"{file} is damaged ({error}). Choose a new folder") from None
    differing = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if differing:
        lines = "\n  ".join(f"{key}: {before.get(key)} there, {now.get(key)} now" for key in differing[:5])
        hint = "Restore these values (checkpoint=<step> if training continued), or choose a new folder"
        raise OutputError(f"out={out} holds shards of another request:\n  {lines}\n{hint}")


def save_arrays(file: Path, **arrays) -> None:
    """Write arrays to an .npz file atomically."""
    import numpy as np

    file.parent.mkdir(exist_ok=True)
    with write_atomically(file, concurrent=True) as beside, open(beside, "wb") as stream:
        np.savez(stream, **arrays)


def write_json(file: Path, value: dict) -> None:
    """Write a JSON file atomically."""
    with write_atomically(file, concurrent=True) as beside:
        beside.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def remove_abandoned_files(folder: Path) -> None:
    """Remove temporary files of killed processes: of this host at once, of others after a day."""
    for file in folder.glob(".*.tmp"):
        with suppress(OSError):
            if is_abandoned(file):
                file.unlink()


def recreate_damaged(
    files: Sequence[Path],
    recreate: Callable[[], None],
    warn: Callable[[str], None],
    is_done: Callable[[], bool] = lambda: False,
) -> None:
    """Verify the checksums of .npz files, remove damaged ones and call `recreate`, until all are intact.

    Stops early if `is_done` says that another process has finished everything.
    """
    while (damaged := {file: why for file in files if (why := checkpoints.find_damage(file))}) and not is_done():
        for file, why in damaged.items():
            warn(f"{file} is damaged ({why}) and will be made again")
            file.unlink(missing_ok=True)
        recreate()
