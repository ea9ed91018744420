"""How much memory a run takes, and what to do when there is no more."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from diffusion_lit.system.platform import peak_memory_bytes, resource

# of cgroups 2 and 1: where they are, the limit, what is taken, and what of that are pages of files
VERSIONS = {
    "": ("", "memory.max", "memory.current", "inactive_file"),
    "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def peak_memory_gib(device: torch.device) -> float:
    """The most that tensors took on a GPU, or else the most that this process took, since it began; in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return peak_memory_bytes() / 2**30


def reset_peak_memory(device: torch.device) -> bool:
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
def limit_to_free_memory() -> Iterator[None]:
    """Inside, taking more of this machine's memory than is free is an error that can be
    caught; without, Linux would end the process. Other systems know no such limit.
    """
    try:
        free, own = 1024 * _kib("/proc/meminfo", "MemAvailable"), 1024 * _kib("/proc/self/status", "VmData")
        free = min([free, *free_cgroup_bytes()])
    except (OSError, StopIteration):
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_DATA)
    limit = min([own + free, *[one for one in before if one != resource.RLIM_INFINITY]])
    resource.setrlimit(resource.RLIMIT_DATA, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def free_cgroup_bytes(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Bytes that the groups of this process may still take: by cgroups containers and SLURM limit memory."""
    found = []
    for line in own.read_text().splitlines():
        _, kinds, place = line.split(":", 2)
        if kinds in VERSIONS:
            folder, limit, used, files = VERSIONS[kinds]
            narrowest = root / folder / place.strip("/")
            for group in [narrowest, *narrowest.parents]:
                with suppress(OSError, ValueError):  # no such file, or "max"
                    facts = (group / "memory.stat").read_text().splitlines()
                    droppable = sum(int(fact.split()[1]) for fact in facts if fact.startswith(f"{files} "))
                    taken = int((group / used).read_text()) - droppable
                    found.append(max(0, int((group / limit).read_text()) - taken))
    return found


def _kib(path: str, name: str) -> int:
    return next(int(line.split()[1]) for line in Path(path).read_text().splitlines() if line.startswith(f"{name}:"))


def is_out_of_memory(error: BaseException) -> bool:
    """Of a GPU, or of this machine; the CPU's allocator has no error of its own."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def suggest_smaller_batch(config: dict, world_size: int) -> str:
    """Overrides that make the same training fit, or what else there is to do."""
    batch, now = config["global_batch_size"], config["strategy"]["accumulate"] * world_size
    at_a_time = batch // now
    more = next((k for k in range(2 * now, batch + 1, now) if batch % k == 0), None)
    if more is None:
        return f"{at_a_time} images at a time are the fewest; a smaller network or image needs less"
    override = f"strategy.accumulate={more // world_size}"
    return f"{override} is the same training with {batch // more} images at a time instead of {at_a_time}"
