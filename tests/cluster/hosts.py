"""Two hosts on one machine: each has its own network, name, table of hosts and processes; the file system is shared.

They are namespaces held by one process each, so nothing is left of them when it ends. Loopback of one is not the
loopback of the other, and a cable (a pair of virtual Ethernet devices) joins them.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = ("ip", "unshare", "nsenter", "mount", "hostname")


def train_unforked(*overrides: str, cwd: Path) -> None:
    """Train by an interpreter of its own, which validates on as many noise levels as the tasks of the hosts do."""
    command = [sys.executable, "-m", "diffusion_lit.train", *overrides]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout


class Host:
    """A host with its own network.

    Args:
        name: what it calls itself.
        table: its /etc/hosts.
        folder: for that file.
    """

    def __init__(self, name: str, table: str, folder: Path):
        self.name = name
        file = folder / f"hosts-{name}"
        file.write_text(table)
        start = f"hostname {name} && mount --bind {file} /etc/hosts && ip link set lo up && echo up && exec cat"
        flags = ["--net", "--uts", "--mount", "--pid", "--ipc", "--fork", "--kill-child", "--mount-proc"]
        self.power = subprocess.Popen(
            ["unshare", *flags, "sh", "-c", start], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.power.stdout.readline() == "up\n"
        children = Path(f"/proc/{self.power.pid}/task/{self.power.pid}/children").read_text()
        self.init = int(children.split()[0])

    def command_line(self, *command: object) -> list[str]:
        """Return the command line that runs a command on this host."""
        return ["nsenter", f"--target={self.init}", "--net", "--uts", "--mount", "--pid", "--ipc", *map(str, command)]

    def do(self, *command: object) -> None:
        subprocess.run(self.command_line(*command), check=True, timeout=60)

    def start(self, *command: object, cwd: Path, output=subprocess.PIPE) -> subprocess.Popen:
        """A process, in a folder; its two outputs are one."""
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        env = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        here = self.command_line("sh", "-c", 'cd "$0" && exec "$@"', cwd, *command)
        return subprocess.Popen(here, env=env, stdout=output, stderr=subprocess.STDOUT, text=True)

    def kill(self) -> None:
        """SIGKILL to every process at once."""
        self.do("python3", "-c", "import os; os.kill(-1, 9)")  # neither to itself nor to the first process

    def end(self) -> None:
        self.power.stdin.close()  # as when the test ends in any other way: `cat` ends, and every process with it
        self.power.wait(60)


def two_hosts(folder: Path, tables: tuple[str, str] | None = None, subnet: str = "10.213.7") -> list[Host]:
    """host1 at <subnet>.1 and host2 at <subnet>.2, each with the cable `eth0`; the caller ends them.

    `tables` are their /etc/hosts; left out, both know both names. Skips the test where they cannot be made.
    """
    require_namespaces()
    both = f"127.0.0.1 localhost\n{subnet}.1 host1\n{subnet}.2 host2\n"
    one, two = (Host(f"host{k + 1}", (tables or (both, both))[k], folder) for k in (0, 1))
    cable = ["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", str(two.init)]
    subprocess.run(["nsenter", f"--target={one.init}", "--net", *cable], check=True)  # our process ids, not the host's
    for number, host in ((1, one), (2, two)):
        host.do("ip", "address", "add", f"{subnet}.{number}/24", "dev", "eth0")
        host.do("ip", "link", "set", "eth0", "up")
    return [one, two]


def require_namespaces() -> None:
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if missing:
        pytest.skip(f"needs {', '.join(missing)} (Debian: iproute2, util-linux, hostname)")
    if os.geteuid():
        pytest.skip("needs root, to make hosts")
    tried = subprocess.run(["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "true"], capture_output=True)
    if tried.returncode:
        pytest.skip(f"no namespaces here: {tried.stderr.decode().strip()}")
