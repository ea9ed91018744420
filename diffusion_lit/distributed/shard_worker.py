"""Processes that a launcher starts beside each other to share the shards of one command."""

from diffusion_lit.distributed import collectives, slurm
from diffusion_lit.system import console


def choose_device(device: str) -> str:
    """Return the `device` of this process: a GPU of its own where `device` is auto. Only the first process prints."""
    slurm.export_torchrun_environment()
    if collectives.launcher_env("RANK"):
        console.hush()
    local_rank = collectives.launcher_env("LOCAL_RANK")
    if local_rank is None or device != "auto":
        return device
    import torch

    gpus = torch.cuda.device_count()
    return f"cuda:{local_rank % gpus}" if gpus > 1 else device
