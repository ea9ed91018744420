"""What the ranks of a run agree on: that nothing went wrong on one, who goes first on a machine, and that every host
sees the same pictures, and the checkpoint to go on from.
"""

import hashlib
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TypeVar

from diffusion_lit.data.datamodule import ImageDataModule
from diffusion_lit.data.sources.folder import hold_out
from diffusion_lit.data.store import ImageStore
from diffusion_lit.distributed import collectives
from diffusion_lit.system.errors import Exit, UserError

T = TypeVar("T")
NAMED = 3  # pictures


def capture_user_error(work: Callable[[], T]) -> tuple[T | None, UserError | None]:
    """What it returns, or the error of a user that it raises: the other ranks wait, and are to know of it."""
    try:
        return work(), None
    except UserError as error:
        return None, error


def raise_on_all_ranks(fault: UserError | None) -> None:
    """Raise on every rank the first error that one of them has; rank 0 tells it, the others end without a word."""
    own = fault and (int(fault.exit_code), str(fault), socket.gethostname())
    found = [(rank, *error) for rank, error in enumerate(collectives.all_gather(own)) if error]
    if not found:
        return
    rank, code, words, host = found[0]
    if collectives.rank():
        sys.exit(code)
    raise UserError(Exit(code), f"rank {rank} on {host}: {words}" if rank else words)


def run_on_all_ranks_or_raise(work: Callable[[], T]) -> T:
    """What it returns on this rank; raises on every rank what goes wrong on one."""
    done, fault = capture_user_error(work)
    raise_on_all_ranks(fault)
    return done


@contextmanager
def local_rank_zero_first() -> Iterator[None]:
    """The first process of each machine does it while the others wait, and find it done."""
    first = collectives.world_size() == 1 or not collectives.launcher_env("LOCAL_RANK")
    if not first:
        collectives.all_reduce_max(0)
    try:
        yield
    finally:
        if first:
            collectives.all_reduce_max(0)


def check_checkpoint_on_all_hosts(start: Path | None) -> None:
    """Raises UserError (exit 4) where a host does not see the checkpoint to go on from."""
    missing = start is not None and not start.is_file()
    message = f"{start} is not on this host, and every host reads it: share the run folder, or copy it there"
    raise_on_all_ranks(UserError(Exit.CHECKPOINT, message) if missing else None)


def check_identical_data(data: ImageDataModule) -> None:
    """Raises UserError (exit 3) where the pictures of a host are not those of rank 0, naming host and difference, or
    are damaged.
    """
    first_here = not collectives.launcher_env("LOCAL_RANK")
    stores = [store for store in (data.train, data.val) if store]
    hosts = collectives.all_gather(socket.gethostname() if first_here else None)
    if sum(host is not None for host in hosts) < 2:  # all share one file
        return
    prints = collectives.all_gather(
        run_on_all_ranks_or_raise(lambda: [store.fingerprint for store in stores] if first_here else None)
    )
    others = [rank for rank, found in enumerate(prints) if found and found != prints[0]]
    if not others:
        return
    pictures = collectives.all_gather(_digests(data, stores) if first_here else None)
    counts = collectives.all_gather(sum(map(len, stores)))
    told = describe_data_difference(
        pictures[0], pictures[others[0]], hosts[0], hosts[others[0]], (counts[0], counts[others[0]])
    )
    raise_on_all_ranks(UserError(Exit.DATA, told) if collectives.rank() == 0 else None)


def describe_data_difference(
    ours: dict[str, str], theirs: dict[str, str], here: str, there: str, counts: tuple[int, int]
) -> str:
    """In words, how the pictures of two hosts differ; {name: digest} in the order of training, and how many there are
    here and there.
    """
    parts = [
        (f"missing on {there}", [name for name in ours if name not in theirs]),
        (f"missing on {here}", [name for name in theirs if name not in ours]),
        ("not the same on both", [name for name in ours if theirs.get(name, ours[name]) != ours[name]]),
    ]
    lines = [f"{what}: {_some(names)}" for what, names in parts if names] or ["they have another order"]
    many = f"{counts[1]:,} there, {counts[0]:,} on {here}"
    copied = "give every host the same copy of them"
    return f"the pictures on {there} are others ({many}):\n  " + "\n  ".join(lines) + f"\n{copied}"


def _some(names: list[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more:,} more" if more > 0 else "")


def _digests(data: ImageDataModule, stores: list[ImageStore]) -> dict[str, str]:
    """Pixels and label of each picture, by its file below data.root, or else by its place; of pictures that are not
    kept only what is known of all.
    """
    if not isinstance(data.train, ImageStore):
        named = {"training pictures": data.train, "held-out pictures": data.val}
        return {name: store.fingerprint for name, store in named.items() if store}
    splits = hold_out(data.source.splits(), data.config["val_fraction"])
    listed = list(chain.from_iterable(splits[name].pictures for name in ("train", "val") if _has_files(splits, name)))
    rows = [(image, label) for store in stores for image, label in zip(store.images, store.labels, strict=True)]
    root = Path(getattr(data.source, "root", None) or "")
    names = [f"picture {k}" for k in range(len(rows))]
    if len(listed) == len(rows):
        names = [str(path.relative_to(root)) if path.is_relative_to(root) else str(path) for path in listed]
    return {
        name: hashlib.blake2b(image.tobytes() + label.tobytes(), digest_size=8).hexdigest()
        for name, (image, label) in zip(names, rows, strict=True)
    }


def _has_files(splits: dict, name: str) -> bool:
    return name in splits and isinstance(splits[name].pictures, list) and isinstance(splits[name].pictures[0], Path)
