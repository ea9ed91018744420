"""Real processes that start in a moment: one server imports what takes seconds, and every command is a fork of it.

A fork runs `python -m diffusion_lit.<verb>` as an interpreter of its own would: its own process id, working directory,
environment, signals and exit code; but what a library reads of the environment when it is imported (HF_HUB_OFFLINE) was
read by the server. The server itself never computes anything, so that no thread is lost in a fork.
"""

import atexit
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


class Process:
    """A forked command, with the methods of subprocess.Popen that tests use; its two outputs are one.

    Args:
        words: `diffusion_lit.<verb>` and its overrides.
        prelude: Python code that the process runs first, to make a fault.
    """

    def __init__(self, words: list[str], cwd: Path, env: dict[str, str], prelude: str = ""):
        self.words, self.returncode, self.printed = words, None, b""
        self.connection = socket.socket(socket.AF_UNIX)
        self.connection.connect(_server())
        self.output, write_end = os.pipe()
        request = json.dumps({"words": words, "cwd": str(cwd), "env": env, "prelude": prelude}).encode()
        socket.send_fds(self.connection, [b"x"], [write_end])
        os.close(write_end)
        self.connection.sendall(request + b"\n")
        self.answers = self.connection.makefile()
        self.pid = int(self.answers.readline())

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self.connection], [], [], 0)[0]:
            self.returncode = int(self.answers.readline())
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None and not select.select([self.connection], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.words, timeout)
        return self.poll()

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """What it printed, once every process that could still print has ended."""
        until = time.monotonic() + (timeout or 1e9)
        while self.output is not None:
            if not select.select([self.output], [], [], max(0, until - time.monotonic()))[0]:
                raise subprocess.TimeoutExpired(self.words, timeout)
            chunk = os.read(self.output, 1 << 16)
            self.printed += chunk
            if not chunk:
                os.close(self.output)
                self.output = None
        self.wait(max(0, until - time.monotonic()))
        return self.printed.decode(errors="replace"), None

    def so_far(self) -> str:
        """What it has printed until now, without waiting."""
        while self.output is not None and select.select([self.output], [], [], 0)[0]:
            chunk = os.read(self.output, 1 << 16)
            if not chunk:
                break
            self.printed += chunk
        return self.printed.decode(errors="replace")

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


_address: str | None = None


def _server() -> str:
    """The socket of this process's server, started with the first command."""
    global _address
    if _address is None:
        folder = tempfile.TemporaryDirectory()
        address = f"{folder.name}/socket"
        root = Path(__file__).parents[1]
        server = subprocess.Popen([sys.executable, "-m", "tests.forks", address], cwd=root, stdin=subprocess.PIPE)
        atexit.register(folder.cleanup)
        atexit.register(server.kill)
        while not os.path.exists(address):
            if server.poll() is not None:
                raise RuntimeError("the server of forked commands did not start")
            time.sleep(0.01)
        _address = address
    return _address


def _serve(address: str) -> dict | None:
    """Fork for ever; in a fork, returns the request that it is for."""
    import diffusers.models.unets.unet_2d  # noqa: F401 what every run imports, without diffusion_lit.train itself
    import diffusers.schedulers  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import PIL.GifImagePlugin  # noqa: F401
    import PIL.JpegImagePlugin  # noqa: F401
    import sklearn.datasets  # noqa: F401
    import torch  # noqa: F401
    from hydra.core.plugins import Plugins

    import diffusion_lit.cli.launch  # noqa: F401
    import diffusion_lit.figures.style  # noqa: F401
    import diffusion_lit.runs.load  # noqa: F401
    import diffusion_lit.training.fit
    import diffusion_lit.training.trainer  # noqa: F401

    Plugins.instance()  # finds and imports every plugin
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers of processes need no farewell
    gc.freeze()  # a collection would copy every page that the forks share
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{address}.new")
    listener.listen(64)
    os.rename(f"{address}.new", address)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:  # its keeper: starts it, waits for it, tells how it ended
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            _, (output,), _, _ = socket.recv_fds(connection, 1, 1)
            request = json.loads(connection.makefile().readline())
            pid = os.fork()
            if pid == 0:
                connection.close()
                os.dup2(output, 1)
                os.dup2(output, 2)
                os.close(output)
                return request
            os.close(output)
            connection.sendall(f"{pid}\n".encode())
            _, status = os.waitpid(pid, 0)
            connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
            os._exit(0)
        connection.close()


def _exit_code(command: Callable[[], object]) -> int:
    """Run a command and end as an interpreter does, but for taking torch apart, which would take seconds."""
    code = 0
    try:
        command()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    with suppress(OSError):
        sys.stdout.flush()
    return code


if __name__ == "__main__":
    asked = _serve(sys.argv[1])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests started by a script's `&` have it ignored
    sys.argv = ["", *asked["words"][1:]]
    sys.path[0] = asked["cwd"]
    exec(asked["prelude"])
    os._exit(_exit_code(lambda: runpy.run_module(asked["words"][0], run_name="__main__", alter_sys=True)))
