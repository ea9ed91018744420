"""Work shared by any number of processes, on any number of hosts, that have nothing in common but a folder.

The work is cut into pieces, each of which leaves a file. A process takes a piece that is neither there nor in another
one's hands, until all are there. A piece is held by a lock that falls with its process, and a file has its name only
when it is whole: so a process may be killed at any time, and others, or the same command started again, go on.
"""

import errno
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from diffusion_lit.runs import checkpoints, run_dir
from diffusion_lit.runs.resume import flatten_config
from diffusion_lit.system.errors import Exit, UserError
from diffusion_lit.system.files import is_abandoned, write_atomically
from diffusion_lit.system.platform import lock_byte

WAIT = 0.5  # seconds between two looks at what the others do


def share_work(
    lock: Path,
    count: int,
    done: Callable[[int], bool],
    make: Callable[[int], None],
    report: Callable[[int], None] = lambda done: None,
) -> None:
    """Make all of `count` pieces, together with every process that calls this with the same `lock`.

    Returns when all pieces are done, whoever made them. `report` is called with the number that is done, before each
    piece and each wait.

    Where a file system has no locks, pieces may be made twice, which costs time and nothing else; so each process has
    an order of its own.
    """
    order = random.SystemRandom().sample(range(count), count)
    with open(lock, "ab") as file:
        while missing := [k for k in order if not done(k)]:
            report(count - len(missing))
            if not any(_taken(file, k, done, make) for k in missing):
                time.sleep(WAIT)


def _taken(file, k: int, done: Callable[[int], bool], make: Callable[[int], None]) -> bool:
    """Make piece k, unless another process has made it or is making it."""
    with _held(file, k) as mine:
        if not mine or done(k):
            return False
        make(k)
        return True


@contextmanager
def _held(file, k: int) -> Iterator[bool]:
    """Lock byte k of the lock file if it is free, and yield whether it was. NFS has these locks too."""
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


def save_arrays(file: Path, **arrays) -> None:
    """Write arrays to an .npz file."""
    import numpy as np

    file.parent.mkdir(exist_ok=True)
    with write_atomically(file, many=True) as beside, open(beside, "wb") as stream:
        np.savez(stream, **arrays)


def write_json(file: Path, value: dict) -> None:
    with write_atomically(file, many=True) as beside:
        beside.write_text(json.dumps(value, indent=2) + "\n")


def remove_left_overs(run_dir: Path) -> None:
    """Remove what processes left that were killed: of this host at once, of others when it is a day old."""
    for file in run_dir.glob(".*.tmp"):
        with suppress(OSError):
            if is_abandoned(file):
                file.unlink()


def recreate_damaged(
    files: Sequence[Path],
    again: Callable[[], None],
    warn: Callable[[str], None],
    done: Callable[[], bool] = lambda: False,
) -> None:
    """Verify the checksums of every .npz, remove damaged files and call `again`, until all are intact.

    Stops early where `done` says that other processes have finished everything.
    """
    while (faults := {file: why for file in files if (why := checkpoints.find_damage(file))}) and not done():
        for file, why in faults.items():
            warn(f"{file} is damaged ({why}): it is made again")
            file.unlink(missing_ok=True)
        again()


def claim_folder(plan: dict, out: Path) -> None:
    """Write to plan.json what is made in a folder, or check that the plan there is the same.

    Raises:
        UserError: exit 5 if the plan differs, the folder holds other files, or it cannot be made.
    """
    file = out / "plan.json"

    def write(_: int) -> None:
        if any(not path.name.startswith(".") for path in out.iterdir()) and not file.exists():
            raise UserError(Exit.OUTPUT, f"out={out} is not empty, and no shards: choose a new folder")
        write_json(file, plan)

    run_dir.make_folder(out)
    share_work(out / ".lock", 1, lambda _: file.exists(), write)
    try:
        before, now = flatten_config(json.loads(file.read_text())), flatten_config(json.loads(json.dumps(plan)))
    except (ValueError, AttributeError) as error:
        raise UserError(Exit.OUTPUT, f"{file} is damaged ({error}): choose a new folder") from None
    differing = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if differing:
        lines = "\n  ".join(f"{key}: {before.get(key)} there, {now.get(key)} now" for key in differing[:5])
        hint = "say what was said there (checkpoint=<step> if training went on), or choose a new folder"
        raise UserError(Exit.OUTPUT, f"out={out} holds shards of something else:\n  {lines}\n{hint}")
