"""SLURM: several processes of one run started by srun, and a job that is queued again. Imports nothing heavy."""

import logging
import os
import re
import signal
import subprocess

from diffusion_lit.distributed.process_group import LOCALHOST
from diffusion_lit.system.errors import SAVING

log = logging.getLogger(__name__)

FIRST_PORT, PORTS = 16000, 16000  # below those that Linux gives to whoever asks for any


def export_torchrun_environment() -> None:
    """In a process that srun has started beside others: put into the environment what torchrun would have put there.

    Rank 0 waits for the others on the first node of the step, at a port that other jobs of the node do not take;
    MASTER_ADDR and MASTER_PORT of the environment come first. The script of sbatch, a step of one task and a shell
    (`srun --pty bash`) are left alone: what is typed there is a run of its own.
    """
    step = os.environ.get("SLURM_STEP_ID")
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    typed = os.isatty(0)  # to read from, srun gives a terminal to nobody else; to write to, with --unbuffered, to all
    if step is None or tasks == 1 or typed or "RANK" in os.environ:
        return
    nodes = int(os.environ["SLURM_STEP_NUM_NODES"])
    here = parse_tasks_per_node(os.environ["SLURM_STEP_TASKS_PER_NODE"])[int(os.environ["SLURM_NODEID"])]
    values = {
        "RANK": os.environ["SLURM_PROCID"],
        "WORLD_SIZE": str(tasks),
        "LOCAL_RANK": os.environ["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(here),
        "MASTER_ADDR": LOCALHOST if nodes == 1 else first_host(os.environ["SLURM_STEP_NODELIST"]),
        "MASTER_PORT": str(choose_port(int(os.environ["SLURM_JOB_ID"]), int(step))),
    }
    for key, value in values.items():
        os.environ.setdefault(key, value)
    for number in SAVING:  # they go to all tasks, and before training there is nothing to save
        signal.signal(number, signal.SIG_IGN)


def first_host(nodes: str) -> str:
    """The first host of a node list such as `gpu[07-09,12],login` or `rack[1-2]n[3-4]`."""
    return re.sub(r"\[(\d+)[^]]*\]", r"\1", nodes).partition(",")[0]


def parse_tasks_per_node(tasks_per_node: str) -> list[int]:
    """Tasks of each node, from a list such as `4(x2),3`."""
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", tasks_per_node)
    return [int(count) for count, times in found for _ in range(int(times or 1))]


def choose_port(job: int, step: int) -> int:
    """Jobs less than 16,000 apart never meet at one port, nor do the first seven steps of a job and its neighbours'."""
    return FIRST_PORT + (7 * job + step) % PORTS


def is_restarted() -> bool:
    """Whether this job ran before and was queued again."""
    return os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def requeue_job() -> None:
    """Ask SLURM to start this job once more; its script goes on with resume=auto."""
    job = os.environ["SLURM_JOB_ID"]
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the answer, which would change the exit code
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True, timeout=60)
        log.info("job %s is queued again", job)
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("job %s could not be queued again: %s", job, getattr(error, "stderr", None) or error)
