"""Choose the device of one of several processes that share the shards of a `sample` or `evaluate` command.

torchrun or srun starts the same command several times. The processes need no process group:
they claim shards through files in the output folder (`runs/shards.py`). This module gives each
one a GPU of its own and silences all but one.
"""

from diffusion_lit.distributed import collectives, slurm
from diffusion_lit.system import console


def choose_device(device: str) -> str:
    """Return the device of this process: with `auto`, a GPU of its own. All ranks but 0 stop printing."""
    slurm.export_torchrun_environment()
    if collectives.launcher_env("RANK"):
        console.silence_console()
    local_rank = collectives.launcher_env("LOCAL_RANK")
    if local_rank is None or device != "auto":
        return device
    import torch

    gpus = torch.cuda.device_count()
    return f"cuda:{local_rank % gpus}" if gpus > 1 else device
