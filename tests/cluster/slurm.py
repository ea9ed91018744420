"""A SLURM of its own: two nodes on this machine, all files and sockets in one folder, gone when it ends."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "sinfo")
PATHS = f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin"

# partition `high` takes the nodes from jobs in `low`, which are queued again; cred_expire is how long that takes
CONF = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
CredType=cred/munge
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/%n.log
SlurmdSpoolDir={folder}/%n
StateSaveLocation={folder}/state
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=120
MpiDefault=none
ReturnToService=2
SlurmdTimeout=0
MessageTimeout=60
NodeName=n[1-2] NodeAddr=127.0.0.1 NodeHostname={host} Port={ports[1]},{ports[2]} CPUs=2
PartitionName=low Nodes=ALL Default=YES PriorityTier=1
PartitionName=high Nodes=ALL PriorityTier=10
"""

# submitit reads the state of a job from sacct, which needs a database that this SLURM does not have
SACCT = r"""#!/bin/sh
echo 'JobID|State|NodeList'
while [ $# -gt 0 ]; do
    [ "$1" = -j ] && scontrol --oneliner show job "$2" | sed -nE \
        -e 's/.* ArrayJobId=([0-9]+) ArrayTaskId=([0-9]+) .* JobState=([A-Z_]+) .*/\1_\2|\3|/p;t' \
        -e 's/^JobId=([0-9]+) .* JobState=([A-Z_]+) .*/\1|\2|/p'
    shift
done
"""


class Slurm:
    """Commands for a SLURM that runs, and its environment."""

    def __init__(self, folder: Path, env: dict[str, str]):
        self.folder, self.env = folder, env

    def __call__(self, *command: str, cwd: Path | None = None) -> str:
        """What a command of SLURM prints; it has to succeed."""
        done = subprocess.run(command, cwd=cwd, env=self.env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """What SLURM knows of a job: JobState, Restarts, ExitCode..."""
        line = self("scontrol", "--oneliner", "show", "job", number)
        return dict(field.partition("=")[::2] for field in line.split())

    def until(self, condition, what: str, seconds: float = 400) -> None:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                logs = "\n".join(f"{file}:\n{file.read_text()[-3000:]}" for file in self.folder.glob("*.out"))
                pytest.fail(f"not within {seconds} s: {what}\n{logs}")
            time.sleep(0.2)

    def ended(self, number: str) -> dict[str, str]:
        """What SLURM knows of a job that has ended for good."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self.until(lambda: self.job(number)["JobState"] in over, f"job {number} ends")
        return self.job(number)


@contextmanager
def slurm(folder: Path) -> Iterator[Slurm]:
    """Start all daemons, wait until both nodes are idle; afterwards no process is left."""
    if os.getuid() != 0:
        pytest.skip("the daemons of SLURM need root")
    missing = [tool for tool in TOOLS if not shutil.which(tool, path=PATHS)]
    if missing:
        pytest.skip(f"{', '.join(missing)} not found: apt-get install slurm-wlm munge")
    conf, host = folder / "slurm.conf", socket.gethostname()
    conf.write_text(CONF.format(folder=folder, host=host, ports=free_ports(3)))
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    (folder / "bin").mkdir()
    (folder / "bin" / "sacct").write_text(SACCT)
    (folder / "bin" / "sacct").chmod(0o755)
    for name in ("state", "n1", "n2"):
        (folder / name).mkdir()
    env = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
    env |= {
        "SLURM_CONF": str(conf),
        "PATH": f"{folder / 'bin'}:{PATHS}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    env["MASTER_ADDR"] = "127.0.0.1"  # n1 has no address
    places = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
    daemons = [
        ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *places],
        ["slurmctld", "-D", "-c"],
        *[["slurmd", "-D", "-N", name] for name in ("n1", "n2")],
    ]
    here = Slurm(folder, env)
    with ExitStack() as stack:
        stack.callback(end, conf, started := [])
        for command in daemons:
            with open(folder / f"{command[0]}.out", "a") as out:
                started.append(subprocess.Popen(command, cwd=folder, env=env, stdin=-3, stdout=out, stderr=out))
            here.until((folder / "munge.socket").exists, "munged listens", 60)
        here.until(lambda: answered(here).split() == ["idle"] * 2, "both nodes are idle", 120)
        yield here


def answered(here: Slurm) -> str:
    return subprocess.run(
        ["sinfo", "-hN", "-p", "low", "-o", "%T"], env=here.env, capture_output=True, text=True
    ).stdout


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def end(conf: Path, started: list[subprocess.Popen]) -> None:
    """Kill every process of this SLURM, daemons, steps and tasks alike, and only those."""
    mark = f"SLURM_CONF={conf}".encode()
    for _ in range(50):
        pids = [pid for pid in processes() if mark in environment(pid)]
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        ended = [process.poll() for process in started]  # or they stay as zombies
        if not pids and None not in ended:
            return
        time.sleep(0.1)


def processes() -> list[int]:
    return [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]


def environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []
