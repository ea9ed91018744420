"""How much memory a run takes, and what to do when there is no more."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from diffusion_lit.platforms import peak_bytes, resource


def peak_memory_gib(device: torch.device) -> float:
    """The most that tensors took on a GPU, or else the most that this process took, since it began; in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return peak_bytes() / 2**30


def begin_peak(device: torch.device) -> bool:
    """Let `peak_memory_gib` begin anew; false where the peak of a process cannot be reset (it can on Linux)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    with suppress(OSError, AttributeError):  # of glibc: what was freed goes back to the system
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


@contextmanager
def within_free_memory() -> Iterator[None]:
    """Inside, taking more of this machine's memory than is free is an error that can be caught; without, Linux would
    end the process. Other systems know no such limit."""
    try:
        free, own = _kib("/proc/meminfo", "MemAvailable"), _kib("/proc/self/status", "VmData")
    except (OSError, StopIteration):
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_DATA)
    limit = min([(own + free) * 1024, *[one for one in before if one != resource.RLIM_INFINITY]])
    resource.setrlimit(resource.RLIMIT_DATA, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _kib(path: str, name: str) -> int:
    return next(int(line.split()[1]) for line in Path(path).read_text().splitlines() if line.startswith(f"{name}:"))


def is_out_of_memory(error: BaseException) -> bool:
    """Of a GPU, or of this machine; the CPU's allocator has no error of its own."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def advice(config: dict, world_size: int) -> str:
    """Overrides that make the same training fit, or what else there is to do."""
    batch, now = config["global_batch_size"], config["strategy"]["accumulate"] * world_size
    at_a_time = batch // now
    more = next((k for k in range(2 * now, batch + 1, now) if batch % k == 0), None)
    if more is None:
        return f"{at_a_time} images at a time are the fewest; a smaller network or image needs less"
    override = f"strategy.accumulate={more // world_size}"
    return f"{override} is the same training with {batch // more} images at a time instead of {at_a_time}"
