"""Exchange small Python values between the processes (ranks) of a run.

Data, seeds and decisions must be the same on every rank. These functions wrap
`torch.distributed` so that the calling code needs no case for a run of one
process: there, each function returns at once. Torch is imported only when
needed.
"""

import os
import sys
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")
LAUNCHER_KEYS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def launcher_env(name: str) -> int | None:
    """Return a variable that a launcher such as torchrun sets, or None if no launcher started this process.

    Args:
        name: RANK, WORLD_SIZE, LOCAL_RANK or LOCAL_WORLD_SIZE.
    """
    is_launched = all(key in os.environ for key in LAUNCHER_KEYS)
    return int(os.environ[name]) if is_launched and name in os.environ else None


def rank() -> int:
    """Return the rank of this process; 0 without a process group. Before `launch_ranks` use launcher_env("RANK")."""
    return launcher_env("RANK") or 0 if world_size() > 1 else 0


def world_size() -> int:
    """Return the number of processes on all nodes; 1 as long as there is no process group."""
    distributed = sys.modules.get("torch.distributed")
    return distributed.get_world_size() if distributed and distributed.is_initialized() else 1


def broadcast_from_rank_zero(value: Value) -> Value:
    """Return the value that rank 0 passes, on every rank."""
    if world_size() == 1:
        return value
    from torch import distributed

    values = [value]
    distributed.broadcast_object_list(values)
    return values[0]


def all_reduce_max(number: int) -> int:
    """Return the maximum over all ranks, on every rank. Serves as a barrier too."""
    return start_all_reduce_max(number)()


def start_all_reduce_max(number: int) -> Callable[[], int]:
    """Start to compute the maximum over all ranks, and return the function that waits for it.

    All ranks start and wait at the same places of the program.
    """
    if world_size() == 1:
        return lambda: number
    import torch
    from torch import distributed

    maximum = torch.tensor([number])  # on the CPU, so that nothing waits for the GPU
    work = distributed.all_reduce(maximum, distributed.ReduceOp.MAX, async_op=True)

    def wait() -> int:
        work.wait()
        return int(maximum)

    return wait


def all_gather(value: Value) -> list[Value]:
    """Return the values of all ranks in rank order, on every rank."""
    if world_size() == 1:
        return [value]
    from torch import distributed

    values: list = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values


def map_across_ranks(task: Callable[[int], Value], count: int) -> list[Value]:
    """Return [task(0), ..., task(count - 1)] on every rank; each task runs on one rank."""
    size = world_size()
    results = all_gather([task(k) for k in range(rank(), count, size)])
    return [results[k % size][k // size] for k in range(count)]
