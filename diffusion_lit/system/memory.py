"""Memory of a run: peaks, limits, and what to do when it runs out."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from diffusion_lit.system.platform import peak_memory_bytes, resource, return_freed_memory

# controller of cgroups 2 and 1 -> folder, file of the limit, file of the usage, row of memory.stat with file pages
CGROUPS = {
    "": ("", "memory.max", "memory.current", "inactive_file"),
    "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def peak_memory_gib(device: torch.device) -> float:
    """Return the peak of tensors on a GPU, or of this process on other devices, in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return peak_memory_bytes() / 2**30


def reset_peak_memory(device: torch.device) -> bool:
    """Reset `peak_memory_gib`, and return whether that is possible: off the GPU it is on Linux only."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    return_freed_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        return False
    return True


@contextmanager
def limit_to_free_memory() -> Iterator[None]:
    """Raise MemoryError inside of the block instead of exceeding free memory, where Linux would kill the process.

    Other systems have no such limit.
    """
    try:
        free, own = free_bytes(), 1024 * _read_kib("/proc/self/status", "VmData")
    except (OSError, StopIteration):
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_DATA)
    limit = min([own + free, *[bound for bound in before if bound != resource.RLIM_INFINITY]])
    resource.setrlimit(resource.RLIMIT_DATA, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def free_bytes() -> int:
    """Return the bytes that this process may still take.

    Raises:
        OSError: if it is not known, as on other systems than Linux.
    """
    return min([1024 * _read_kib("/proc/meminfo", "MemAvailable"), *free_cgroup_bytes()])


def free_cgroup_bytes(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Return the bytes that each cgroup of this process may still take.

    Containers and SLURM limit memory by them.
    """
    free = []
    for line in own.read_text(encoding="utf-8").splitlines():
        _, controllers, place = line.split(":", 2)
        if controllers in CGROUPS:
            folder, limit, usage, pages = CGROUPS[controllers]
            narrowest = root / folder / place.strip("/")
            for group in [narrowest, *narrowest.parents]:
                with suppress(OSError, ValueError):  # no such file, or "max"
                    rows = (group / "memory.stat").read_text(encoding="utf-8").splitlines()
                    droppable = sum(int(row.split()[1]) for row in rows if row.startswith(f"{pages} "))
                    used = int((group / usage).read_text(encoding="utf-8")) - droppable
                    free.append(max(0, int((group / limit).read_text(encoding="utf-8")) - used))
    return free


def _read_kib(path: str, name: str) -> int:
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether a GPU or this machine ran out of memory.

    The CPU allocator has no error class of its own.
    """
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def suggest_smaller_batch(config: dict, world_size: int) -> str:
    """Return the override with which the same training needs less memory, or other advice."""
    batch, parts = config["global_batch_size"], config["strategy"]["accumulate"] * world_size
    size = batch // parts
    more = next((k for k in range(2 * parts, batch + 1, parts) if batch % k == 0), None)
    if more is None:
        return f"{size} images at a time are the fewest; a smaller network or image needs less"
    override = f"strategy.accumulate={more // world_size}"
    return f"{override} is the same training with {batch // more} images at a time instead of {size}"
