"""Start, connect and end the processes of a run on several devices.

A run with strategy=ddp needs one process per device. Rank 0 reads the command line,
makes the run folder and writes to it. On one machine it starts the other ranks
itself, as torchrun would: the bare command, with RANK and the related variables in
the environment. Ranks that torchrun or srun started are used as they are. In all
cases the other ranks receive their configuration from rank 0, so neither Hydra nor a
sweep runs twice.

Each side notices when the other is gone. A rank that rank 0 started ends when its standard
input closes; rank 0 polls those that it started. Across hosts the connections in `watchdog`
do this. Torch is imported only when needed.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from diffusion_lit.distributed import watchdog
from diffusion_lit.distributed.collectives import all_reduce_max, broadcast_from_rank_zero, launcher_env, world_size
from diffusion_lit.system.errors import SAVE_SIGNALS, STOP_SIGNALS, ConfigError, Exit, UserError

STARTED_BY_US = "DIFFUSION_LIT_RANK_0"  # process id of the rank 0 that started this process
ENVIRONMENT = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK", "LOCAL_RANK", STARTED_BY_US)
LOCALHOST = "127.0.0.1"
_children: list[subprocess.Popen] = []  # ranks 1, 2, ... if this rank 0 has started them


# ------------------------------------------------------------------------------------------------ how many


def resolve_processes(strategy: dict) -> tuple[int, int]:
    """Return (processes per node, nodes) of a `strategy` group; `auto` takes the launcher's numbers.

    Raises:
        UserError: exit 2 for keys that contradict the launcher or the machine.
    """
    devices, nodes = strategy["devices"], strategy["num_nodes"]
    world = launcher_env("WORLD_SIZE")
    if world is None:
        if nodes > 1:
            raise ConfigError(
                f"strategy.num_nodes={nodes}: run this command on every node: "
                f"torchrun --nnodes {nodes} --nproc-per-node <devices> -m diffusion_lit.train ..."
            )
        return count_local_devices(strategy), 1
    per_node = launcher_env("LOCAL_WORLD_SIZE") or world // nodes
    if devices not in ("auto", per_node) or nodes not in (1, world // per_node):
        raise ConfigError(
            f"strategy.devices={devices} strategy.num_nodes={nodes}: the launcher started {world} processes, "
            f"{per_node} per node. Leave out the keys, or start as many."
        )
    return per_node, world // per_node


def count_local_devices(strategy: dict) -> int:
    """Return the devices of this machine that a `strategy` group uses; `auto` is all GPUs, else one CPU process.

    Raises:
        UserError: exit 2 if the machine has fewer GPUs.
    """
    import torch

    devices = strategy["devices"]
    gpus = torch.cuda.device_count() if strategy["accelerator"] in ("auto", "gpu", "cuda") else 0
    if devices == "auto":
        return max(1, gpus)
    if gpus and devices > gpus:
        raise ConfigError(f"strategy.devices={devices}: this machine has {gpus} GPU{'s' * (gpus > 1)}")
    return devices


# ------------------------------------------------------------------------------------------------ rank 0


@contextmanager
def launch_ranks(strategy: dict) -> Iterator[None]:
    """Run the block on rank 0 with all ranks in one process group; start them unless a launcher has.

    Afterwards the group is closed, started processes have ended, and the environment is as
    before.

    Raises:
        UserError: exit 2 for several processes of a strategy other than ddp; if a rank is
            lost, its exit code, or 75 if a signal killed it or its host is gone.
    """
    launched = launcher_env("WORLD_SIZE")
    if strategy["name"] != "ddp" and (launched or 1) > 1:
        message = f"strategy={strategy['name']}: the launcher started {launched} processes. Use strategy=ddp."
        raise ConfigError(message)
    per_node, nodes = resolve_processes(strategy) if strategy["name"] == "ddp" else (1, 1)
    if per_node * nodes == 1:
        yield
        return
    environment = {key: os.environ[key] for key in ENVIRONMENT if key in os.environ}
    finished, failed = threading.Event(), True
    try:
        store = None if launched else _start_children(per_node)
        if _children:
            threading.Thread(target=_watch_children, args=(finished,), daemon=True).start()
        _join_group(store)
        yield
        _leave_group()
        failed = False
    except Exception as error:
        if not watchdog.is_lost_connection(error):
            raise
        lost = _lost_child_error() if _children else watchdog.lost_connection_error(error)
        raise (lost or error) from None
    finally:
        finished.set()
        _end_children(at_once=failed)
        _leave_group(wait=False)
        for key in ENVIRONMENT:
            os.environ.pop(key, None)
        os.environ |= environment


def forward_signal(number: int) -> None:
    """Send a signal to the processes that this one has started."""
    for process in _children:
        process.send_signal(number)


def _start_children(count: int):
    """Start ranks 1 to count - 1 on this machine, as torchrun would; return the store through which all connect."""
    from torch.distributed import TCPStore

    store = TCPStore(LOCALHOST, 0, count, is_master=True, wait_for_workers=False)  # on a free port
    values = (LOCALHOST, store.port, count, count, 0, 0, os.getpid())
    os.environ |= {key: str(value) for key, value in zip(ENVIRONMENT, values, strict=True)}
    for rank in range(1, count):
        _children.append(
            subprocess.Popen(
                [sys.executable, "-m", "diffusion_lit.train", f"rank={rank}"],  # the argument is for `ps` only
                env=os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdin=subprocess.PIPE,  # closes when this process ends, however it ends
                start_new_session=True,  # Ctrl-C reaches rank 0 alone
            )
        )
    return store


def _watch_children(finished: threading.Event) -> None:
    """End this process if a child is lost and the main thread does not notice: NCCL waits for dead peers."""
    while not finished.wait(0.5):
        if any(process.poll() for process in _children) and not finished.wait(watchdog.GRACE):
            print(f"error: {_lost_child_error()}", file=sys.stderr)
            os._exit(int(Exit.INTERRUPTED))


def _lost_child_error() -> UserError | None:
    """Return the error of the first child that ended with a code other than 0, or None."""
    deadline = time.monotonic() + 1  # a child's connection closes shortly before it has ended
    while not any(process.poll() for process in _children) and time.monotonic() < deadline:
        time.sleep(0.05)
    for rank, process in enumerate(_children, start=1):
        code = process.poll()
        if code:
            how = f"exit code {code}" if code > 0 else f"signal {-code}{' (out of memory?)' * (code == -9)}"
            message = f"rank {rank} of {len(_children) + 1} ended with {how}. {watchdog.RESUME_HINT}"
            return UserError(Exit.INTERRUPTED if code < 0 else code, message)
    return None


def _end_children(at_once: bool) -> None:
    for process in _children:
        try:
            process.wait(0 if at_once else watchdog.GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdin.close()
    _children.clear()


# ------------------------------------------------------------------------------------------------ other ranks


@contextmanager
def follow_rank_zero() -> Iterator[None]:
    """Run the block on a rank other than 0, in the process group that rank 0 opens; then end the process.

    If rank 0 fails, this process ends quietly: rank 0 reports the error.
    """
    if STARTED_BY_US in os.environ:
        for number in (*STOP_SIGNALS, *SAVE_SIGNALS):
            signal.signal(number, signal.SIG_IGN)  # rank 0 decides when to stop
        threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _join_group()
        yield
        _leave_group()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)  # nothing is left to do, and gloo's threads sometimes abort an interpreter that shuts down
    except UserError as error:
        if error.exit_code == Exit.NON_FINITE:  # all ranks raise it together, and rank 0 reports it
            watchdog.wait_for_rank_zero()
        else:
            _report(error)
        sys.exit(int(error.exit_code))
    except SystemExit:  # raised on all ranks together
        watchdog.wait_for_rank_zero()
        raise
    except Exception as error:
        if not watchdog.is_lost_connection(error):
            raise
        _report("the other ranks are lost")
        sys.exit(int(Exit.INTERRUPTED))


def _report(message: object) -> None:
    print(f"rank {launcher_env('RANK')} on {socket.gethostname()}: {message}", file=sys.stderr)


def _end_with_parent() -> None:
    os.read(0, 1)  # returns when rank 0 ends, because the pipe closes
    os._exit(int(Exit.INTERRUPTED))


# ------------------------------------------------------------------------------------------------ process group


def _join_group(store=None) -> None:
    """Open the process group, through our own store or a launcher's. Gloo serves CPU tensors, NCCL CUDA tensors."""
    import torch
    from torch.distributed import PrefixStore, TCPStore, init_process_group, rendezvous

    watchdog.initialized.set()
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    rank, count = launcher_env("RANK"), launcher_env("WORLD_SIZE")
    if STARTED_BY_US in os.environ:
        store = store or TCPStore(LOCALHOST, int(os.environ["MASTER_PORT"]), count, is_master=False)
        init_process_group(backend, store=store, rank=rank, world_size=count)
        return
    watchdog.choose_interface()
    store = next(rendezvous("env://"))[0]
    store = PrefixStore(watchdog.agree_on_start_token(store, rank, count), store)
    init_process_group(backend, store=store, rank=rank, world_size=count)
    watchdog.watch_connections(rank, broadcast_from_rank_zero)


def _leave_group(wait: bool = True) -> None:
    """Close the group. Otherwise a process may abort at its end, and the next job of a sweep could not open its own."""
    if world_size() == 1:
        return
    from torch import distributed

    if wait:
        all_reduce_max(0)  # a barrier
        watchdog.finished.set()
    distributed.destroy_process_group()
