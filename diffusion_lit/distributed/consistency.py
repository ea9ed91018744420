"""Keep the ranks of a run together where one of them could fail or see different files.

A rank that raises while the others enter a collective leaves them waiting. So
errors are exchanged first, and then raised on every rank with one message.
Before training, each host checks that it sees the checkpoint and the same
images as rank 0.
"""

import hashlib
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

from diffusion_lit.data.datamodule import ImageDataModule
from diffusion_lit.data.store import ImageRows, ImageStore
from diffusion_lit.distributed import collectives
from diffusion_lit.distributed.collectives import Value
from diffusion_lit.system.errors import CheckpointError, DataError, Exit, UserError

MAX_LISTED = 3  # images named in a message


def capture_user_error(task: Callable[[], Value]) -> tuple[Value | None, UserError | None]:
    """Return (result, None), or (None, error) if the task raises a UserError."""
    try:
        return task(), None
    except UserError as error:
        return None, error


def raise_on_all_ranks(error: UserError | None) -> None:
    """Raise the error of the first rank that has one on every rank. Rank 0 reports it, the others exit silently."""
    own = error and (int(error.exit_code), str(error), socket.gethostname())
    errors = [(rank, *other) for rank, other in enumerate(collectives.all_gather(own)) if other]
    if not errors:
        return
    rank, code, message, host = errors[0]
    if collectives.rank():
        sys.exit(code)
    raise UserError(Exit(code), f"rank {rank} on {host}: {message}" if rank else message)


def run_on_all_ranks_or_raise(task: Callable[[], Value]) -> Value:
    """Return the result of this rank's task; raise a UserError of any rank on all of them."""
    result, error = capture_user_error(task)
    raise_on_all_ranks(error)
    return result


@contextmanager
def local_rank_zero_first() -> Iterator[None]:
    """Run the block on the first process of each machine, then on the others, which can reuse what it has written."""
    is_first = collectives.world_size() == 1 or not collectives.launcher_env("LOCAL_RANK")
    if not is_first:
        collectives.all_reduce_max(0)  # a barrier
    try:
        yield
    finally:
        if is_first:
            collectives.all_reduce_max(0)


def check_checkpoint_on_all_hosts(start: Path | None) -> None:
    """Raise UserError (exit 4) if a host does not see the checkpoint to resume from."""
    is_missing = start is not None and not start.is_file()
    message = f"{start}: not found on this host. Every host reads it: share the run folder, or copy it there."
    raise_on_all_ranks(CheckpointError(message) if is_missing else None)


def check_identical_data(data: ImageDataModule) -> None:
    """Raise UserError (exit 3) if the images of a host are damaged or differ from those of rank 0.

    The processes of one machine share a cache, so only the first process of each machine
    compares.
    """
    is_first = not collectives.launcher_env("LOCAL_RANK")
    stores = [store for store in (data.train, data.val) if store]
    hosts = collectives.all_gather(socket.gethostname() if is_first else None)
    if sum(host is not None for host in hosts) < 2:
        return
    fingerprints = collectives.all_gather(
        run_on_all_ranks_or_raise(lambda: [store.fingerprint for store in stores] if is_first else None)
    )
    differing = [rank for rank, prints in enumerate(fingerprints) if prints and prints != fingerprints[0]]
    if not differing:
        return
    digests = collectives.all_gather(_image_digests(data, stores) if is_first else None)
    counts = collectives.all_gather(sum(map(len, stores)))
    ours, theirs = ((hosts[rank], digests[rank], counts[rank]) for rank in (0, differing[0]))
    message = describe_data_difference(ours, theirs)
    raise_on_all_ranks(DataError(message) if collectives.rank() == 0 else None)


def describe_data_difference(ours: tuple[str, dict, int], theirs: tuple[str, dict, int]) -> str:
    """Return the message on how the images of two hosts differ.

    Args:
        ours: host, {image: digest} in training order, and number of images of rank 0.
        theirs: the same of the other host.
    """
    (here, own, own_count), (there, other, other_count) = ours, theirs
    groups = {
        f"missing on {there}": [name for name in own if name not in other],
        f"missing on {here}": [name for name in other if name not in own],
        "with different content": [name for name in own if other.get(name, own[name]) != own[name]],
    }
    lines = [f"  {group}: {_shorten(names)}" for group, names in groups.items() if names]
    lines = lines or ["  the order of the images differs"]
    head = f"the images on {there} ({other_count:,}) differ from those on {here} ({own_count:,}):"
    return "\n".join([head, *lines, "Give every host the same copy."])


def _shorten(names: list[str]) -> str:
    more = len(names) - MAX_LISTED
    return ", ".join(names[:MAX_LISTED]) + (f" and {more:,} more" if more > 0 else "")


def _image_digests(data: ImageDataModule, stores: list[ImageStore]) -> dict[str, str]:
    """Return a digest of pixels and label of each image, by its path below data.root or else its index.

    Images that are read from disk in every epoch have one digest per split.
    """
    if not isinstance(data.train, ImageStore):
        by_split = {"training images": data.train, "validation images": data.val}
        return {name: store.fingerprint for name, store in by_split.items() if store}
    splits = data.source.splits()
    paths = list(chain.from_iterable(splits[name].images for name in ("train", "val") if _has_files(splits, name)))
    if isinstance(data.train.images, ImageRows) and paths:  # divided by hash
        paths = [paths[k] for store in stores for k in store.images.rows]
    images = [(image, label) for store in stores for image, label in zip(store.images, store.labels, strict=True)]
    root = Path(getattr(data.source, "root", None) or "")
    names = [f"image {k}" for k in range(len(images))]
    if len(paths) == len(images):
        names = [str(path.relative_to(root)) if path.is_relative_to(root) else str(path) for path in paths]
    return {
        name: hashlib.blake2b(image.tobytes() + label.tobytes(), digest_size=8).hexdigest()
        for name, (image, label) in zip(names, images, strict=True)
    }


def _has_files(splits: dict, name: str) -> bool:
    return name in splits and isinstance(splits[name].images, list) and isinstance(splits[name].images[0], Path)
