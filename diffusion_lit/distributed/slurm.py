"""Run under SLURM: join the processes that `srun` started, and requeue the job when its time is over.

srun starts one process per task and describes the job step in SLURM_* variables. The rest
of the code knows only the variables of torchrun, so they are derived here. This module
imports nothing heavy.
"""

import logging
import os
import re
import signal
import subprocess

from diffusion_lit.distributed.process_group import LOCALHOST
from diffusion_lit.system.errors import SAVE_SIGNALS

log = logging.getLogger(__name__)

FIRST_PORT, PORT_COUNT = 16000, 16000  # below the ephemeral ports of Linux


def export_torchrun_environment() -> None:
    """Set RANK, WORLD_SIZE and the other variables of torchrun in a process that srun started as one of several.

    Rank 0 listens on the first node of the job step. MASTER_ADDR and MASTER_PORT are
    kept if they are set already. The batch script, a step of one task and an
    interactive shell (`srun --pty bash`) stay as they are, because a command typed
    there is a run of its own.
    """
    step = os.environ.get("SLURM_STEP_ID")
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    is_interactive = os.isatty(0)  # srun connects stdin to a terminal only with --pty
    if step is None or tasks == 1 or is_interactive or "RANK" in os.environ:
        return
    nodes = int(os.environ["SLURM_STEP_NUM_NODES"])
    local_tasks = parse_tasks_per_node(os.environ["SLURM_STEP_TASKS_PER_NODE"])[int(os.environ["SLURM_NODEID"])]
    values = {
        "RANK": os.environ["SLURM_PROCID"],
        "WORLD_SIZE": str(tasks),
        "LOCAL_RANK": os.environ["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(local_tasks),
        "MASTER_ADDR": LOCALHOST if nodes == 1 else first_host(os.environ["SLURM_STEP_NODELIST"]),
        "MASTER_PORT": str(choose_port(int(os.environ["SLURM_JOB_ID"]), int(step))),
    }
    for key, value in values.items():
        os.environ.setdefault(key, value)
    for number in SAVE_SIGNALS:  # SLURM sends them to all tasks, and before training there is nothing to save
        signal.signal(number, signal.SIG_IGN)


def first_host(nodes: str) -> str:
    """Return the first host of a node list such as `gpu[07-09,12],login` or `rack[1-2]n[3-4]`."""
    return re.sub(r"\[(\d+)[^]]*\]", r"\1", nodes).partition(",")[0]


def parse_tasks_per_node(tasks_per_node: str) -> list[int]:
    """Return the tasks of each node from a list such as `4(x2),3`."""
    groups = re.findall(r"(\d+)(?:\(x(\d+)\))?", tasks_per_node)
    return [int(count) for count, times in groups for _ in range(int(times or 1))]


def choose_port(job: int, step: int) -> int:
    """Return a port for a job step.

    Jobs less than 16,000 apart get different ports, and so do the first seven steps of a
    job and of its neighbors.
    """
    return FIRST_PORT + (7 * job + step) % PORT_COUNT


def requeue_job() -> None:
    """Requeue this job; its script then continues the run with resume=auto."""
    job = os.environ["SLURM_JOB_ID"]
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # SLURM answers with one, which would change the exit code
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True, timeout=60)
        log.info("job %s is queued again", job)
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("job %s could not be queued again: %s", job, getattr(error, "stderr", None) or error)
