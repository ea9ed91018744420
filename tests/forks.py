"""Real processes that start in a moment: one server imports what takes seconds, and every command is a fork of it.

A fork runs `python -m diffusion_lit.<verb>` as an interpreter of its own would: its own process id, working directory,
environment, signals and exit code. Three things differ: what a library reads of the environment when it is imported
(HF_HUB_OFFLINE) was read by the server, validation takes fewer images, and the other ranks of a run are forks as well.
The server itself never computes anything, so that no thread is lost in a fork.
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
from types import SimpleNamespace

VALIDATION_IMAGES = 64  # on which forks validate: one batch, a fifth of a real validation


class Fork:
    """A process forked by the server, with the methods of subprocess.Popen that need no pipe."""

    def __init__(self, command: list[str], files: tuple[int, int, int], **request: object):
        self.command, self.returncode, self.lock = command, None, threading.Lock()
        self.connection = socket.socket(socket.AF_UNIX)
        self.connection.connect(_server())
        socket.send_fds(self.connection, [b"x"], list(files))
        self.connection.sendall(json.dumps({"command": command, **request}).encode() + b"\n")
        self.answers = self.connection.makefile()
        self.pid = int(self.answers.readline())

    def poll(self) -> int | None:
        with self.lock:
            if self.returncode is None and select.select([self.connection], [], [], 0)[0]:
                self.returncode = int(self.answers.readline())
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None and not select.select([self.connection], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.command, timeout)
        return self.poll()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


class Process(Fork):
    """A forked command whose two outputs are one.

    Args:
        command: `diffusion_lit.<verb>`, or another module that is run as `python -m` does, and its arguments.
        prelude: Python code that the process runs first, to make a fault.
    """

    def __init__(self, command: list[str], cwd: Path, env: dict[str, str], prelude: str = ""):
        self.printed = b""
        self.output, write_end = os.pipe()
        with open(os.devnull) as nothing:
            files = (nothing.fileno(), write_end, write_end)
            super().__init__(command, files, cwd=str(cwd), env=env, prelude=prelude)
        os.close(write_end)

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Return what it printed, once every process that could still print has ended."""
        until = time.monotonic() + (timeout or 1e9)
        while self.output is not None:
            if not select.select([self.output], [], [], max(0, until - time.monotonic()))[0]:
                raise subprocess.TimeoutExpired(self.command, timeout)
            chunk = os.read(self.output, 1 << 16)
            self.printed += chunk
            if not chunk:
                os.close(self.output)
                self.output = None
        self.wait(max(0, until - time.monotonic()))
        return self.printed.decode(errors="replace"), None

    def so_far(self) -> str:
        """Return what it has printed until now, without waiting."""
        while self.output is not None and select.select([self.output], [], [], 0)[0]:
            chunk = os.read(self.output, 1 << 16)
            if not chunk:
                break
            self.printed += chunk
        return self.printed.decode(errors="replace")


class Rank(Fork):
    """Another rank of a forked command: takes the place of subprocess.Popen([python, "-m", module, ...])."""

    def __init__(self, args, env, stdin=None, stdout=None, stderr=None, start_new_session=True):
        read_end, write_end = os.pipe()
        command = list(args[args.index("-m") + 1 :])
        super().__init__(command, (read_end, 1, 2), cwd=os.getcwd(), env=dict(env), prelude="", rank_of=os.getpid())
        os.close(read_end)
        self.stdin = os.fdopen(write_end, "wb")  # closes when the process that started this one ends


def ranks_of(pid: int) -> list[int]:
    """Return the process ids of the ranks that this process has forked and that are still there."""
    mark = f"rank of {pid}\n"
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (folder / "comm").read_text() == mark:
                found.append(int(folder.name))
    return found


_address: str | None = None


def _server() -> str:
    """Return the socket of this process's server, started with the first command; a fork's is that of its parent."""
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
    """Fork for ever; in a fork, return the request that it is for."""
    gc.disable()  # imports make no garbage
    import diffusers.models.unets.unet_2d  # noqa: F401 what every run imports, without diffusion_lit.train itself
    import diffusers.schedulers  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import PIL.GifImagePlugin  # noqa: F401
    import PIL.JpegImagePlugin  # noqa: F401
    import sklearn.datasets  # noqa: F401
    import torch  # noqa: F401
    import torch.distributed.run  # noqa: F401
    from hydra.core.plugins import Plugins
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    import diffusion_lit.cli.launch  # noqa: F401
    import diffusion_lit.cli.train_overrides  # noqa: F401
    import diffusion_lit.config.expand  # noqa: F401
    import diffusion_lit.data.sources.digits  # noqa: F401
    import diffusion_lit.diffusion.weighting  # noqa: F401
    import diffusion_lit.figures.style  # noqa: F401
    import diffusion_lit.networks.unet  # noqa: F401
    import diffusion_lit.runs.load  # noqa: F401
    import diffusion_lit.runs.resume  # noqa: F401
    import diffusion_lit.training.build_run  # noqa: F401
    from diffusion_lit.data.datamodule import ImageDataModule
    from diffusion_lit.distributed import process_group

    Plugins.instance()  # finds and imports every plugin
    ImageDataModule.__init__.__kwdefaults__["val_images"] = VALIDATION_IMAGES
    _compose_before_forking()
    process_group.subprocess = SimpleNamespace(
        Popen=Rank, PIPE=subprocess.PIPE, TimeoutExpired=subprocess.TimeoutExpired
    )
    subprocess_handler.Popen = Rank  # of torchrun
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the processes that wait for forks are not waited for
    gc.set_threshold(10_000, 20, 20)
    gc.freeze()  # a collection would copy every page that the forks share
    gc.enable()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{address}.new")
    listener.listen(64)
    os.rename(f"{address}.new", address)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:  # starts the command, waits for it, answers with its exit code
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            _, files, _, _ = socket.recv_fds(connection, 1, 3)
            request = json.loads(connection.makefile().readline())
            pid = os.fork()
            if pid == 0:
                connection.close()
                for number, file in enumerate(files):
                    os.dup2(file, number)
                    os.close(file)
                return request
            for file in files:
                os.close(file)
            connection.sendall(f"{pid}\n".encode())
            _, status = os.waitpid(pid, 0)
            with suppress(OSError):  # whoever started it may have ended first
                connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
            os._exit(0)
        connection.close()


def _compose_before_forking() -> None:
    """Do once what takes every command a quarter of a second: read the yaml files that a verb chooses by default.

    Hydra composes all of a command line a second time to look up `hydra.mode`, which is null unless somebody sets it.
    """
    from hydra._internal.hydra import Hydra

    from diffusion_lit.__main__ import COMMANDS
    from diffusion_lit.config.compose import compose_configs
    from tests.configs import read_configs_once

    read_configs_once()
    for verb in COMMANDS:
        compose_configs(verb, [], complete=False)
        if verb in ("sample", "evaluate", "export"):
            compose_configs(verb, ["sampler=dpmpp_sde"], complete=False)  # that of a run on the digits
    get_mode = Hydra.get_mode

    def mode_of(self, config_name, overrides):
        return get_mode(self, config_name, overrides) if "hydra.mode" in str(overrides) else None

    Hydra.get_mode = mode_of


def _exit_code(command: Callable[[], object]) -> int:
    """Run a command; return the exit code of an interpreter, without the seconds in which it unloads torch."""
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
    _address = sys.argv[1]
    request = _serve(_address)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests started by a script's `&` have it ignored
    sys.argv = ["", *request["command"][1:]]
    sys.path[0] = request["cwd"]
    if "rank_of" in request:
        os.setsid()
        Path("/proc/self/comm").write_text(f"rank of {request['rank_of']}")
    exec(request["prelude"])
    os._exit(_exit_code(lambda: runpy.run_module(request["command"][0], run_name="__main__", alter_sys=True)))
