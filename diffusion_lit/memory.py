"""How much memory a run takes, and what to do when there is no more."""

import torch

from diffusion_lit.platforms import peak_bytes


def peak_memory_gib(device: torch.device) -> float:
    """The most that tensors took on a GPU, or else the most that this process took, since it began; in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return peak_bytes() / 2**30


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
