"""What the processes of a run do together: who they are, one value from rank 0, the values of all of them.

With one process every function returns at once. Torch is not imported before it is needed.
"""

import os
import sys
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def launcher_env(name: str) -> int | None:
    """RANK, WORLD_SIZE, LOCAL_RANK or LOCAL_WORLD_SIZE, if a launcher has set all that it takes to meet."""
    launched = all(key in os.environ for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"))
    return int(os.environ[name]) if launched and name in os.environ else None


def rank() -> int:
    return launcher_env("RANK") or 0 if world_size() > 1 else 0


def world_size() -> int:
    """Processes of this run, all nodes together; 1 before they have met."""
    distributed = sys.modules.get("torch.distributed")
    return distributed.get_world_size() if distributed and distributed.is_initialized() else 1


def broadcast_from_rank_zero(value: T) -> T:
    """Rank 0's value, on every rank."""
    if world_size() == 1:
        return value
    from torch import distributed

    box = [value]
    distributed.broadcast_object_list(box)
    return box[0]


def all_reduce_max(number: int) -> int:
    """The highest of the numbers of all ranks, on every rank; waits for all, so it is a barrier too."""
    if world_size() == 1:
        return number
    import torch
    from torch import distributed

    box = torch.tensor([number])  # on the CPU: no waiting for the device
    distributed.all_reduce(box, distributed.ReduceOp.MAX)
    return int(box)


def all_gather(value: T) -> list[T]:
    """The values of all ranks, in their order, on every rank."""
    if world_size() == 1:
        return [value]
    from torch import distributed

    values: list = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values


def map_across_ranks(work: Callable[[int], T], count: int) -> list[T]:
    """work(0) ... work(count - 1), each done by one rank, all of them on every rank."""
    size = world_size()
    done = all_gather([work(k) for k in range(rank(), count, size)])
    return [done[k % size][k // size] for k in range(count)]
