"""The processes of a run on several devices, and how they work together.

Rank 0 alone reads the command line, makes the run folder and writes to it. It starts the others itself, in the way
torchrun does: the bare command, with RANK and its kin in the environment. Whoever started them, they get their
configuration from rank 0, so neither Hydra nor a sweep ever runs twice. Torch is not imported before it is needed.
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
from typing import TypeVar

from diffusion_lit.distributed import watchdog
from diffusion_lit.distributed.collectives import all_reduce_max, broadcast_from_rank_zero, launcher_env, world_size
from diffusion_lit.system.errors import ENDING, SAVING, Exit, UserError

T = TypeVar("T")
STARTED_BY_US = "DIFFUSION_LIT_RANK_0"  # process id of the rank 0 that started this process
ENVIRONMENT = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK", "LOCAL_RANK", STARTED_BY_US)
LOCALHOST = "127.0.0.1"
_others: list[subprocess.Popen] = []  # that this rank 0 has started


# ------------------------------------------------------------------------------------------------ who is who


def resolve_processes(strategy: dict) -> tuple[int, int]:
    """(processes here, nodes) that a `strategy` group asks for. A launcher's word counts where the keys leave it open.

    Raises:
        UserError: exit 2 for keys that contradict the launcher or the machine.
    """
    devices, nodes = strategy["devices"], strategy["num_nodes"]
    world = launcher_env("WORLD_SIZE")
    if world is None:
        if nodes > 1:
            raise UserError(
                Exit.CONFIG,
                f"strategy.num_nodes={nodes}: start it on every node by "
                f"torchrun --nnodes {nodes} --nproc-per-node <devices> -m diffusion_lit.train ...",
            )
        return count_local_devices(strategy), 1
    here = launcher_env("LOCAL_WORLD_SIZE") or world // nodes
    if devices not in ("auto", here) or nodes not in (1, world // here):
        raise UserError(
            Exit.CONFIG,
            f"strategy.devices={devices} strategy.num_nodes={nodes}: {world} processes were started, {here} on a node",
        )
    return here, world // here


def count_local_devices(strategy: dict) -> int:
    """Devices of this machine that a `strategy` group asks for; `auto` is all GPUs, else one CPU process."""
    import torch

    asked = strategy["devices"]
    gpus = torch.cuda.device_count() if strategy["accelerator"] in ("auto", "gpu", "cuda") else 0
    if asked == "auto":
        return max(1, gpus)
    if gpus and asked > gpus:
        raise UserError(Exit.CONFIG, f"strategy.devices={asked}: there {'are' if gpus > 1 else 'is'} {gpus} here")
    return asked


# ------------------------------------------------------------------------------------------------ meeting


@contextmanager
def launch_ranks(strategy: dict) -> Iterator[None]:
    """Rank 0 with all the others in one process group; they are gone and the group is closed when this ends.

    Raises:
        UserError: exit code of a lost process, or 75 if a signal killed it; 2 for several of `single` or `dp`.
    """
    launched = launcher_env("WORLD_SIZE")
    if strategy["name"] != "ddp" and (launched or 1) > 1:
        raise UserError(Exit.CONFIG, f"{launched} processes were started for strategy={strategy['name']}: use ddp")
    here, nodes = resolve_processes(strategy) if strategy["name"] == "ddp" else (1, 1)
    if here * nodes == 1:
        yield
        return
    before = {key: os.environ[key] for key in ENVIRONMENT if key in os.environ}
    over, failed = threading.Event(), True
    try:
        store = None if launched else _start_others(here)
        if _others:
            threading.Thread(target=_watch, args=(over,), daemon=True).start()
        _join(store)
        yield
        _leave()
        failed = False
    except Exception as error:
        lost = None
        if watchdog.is_lost_connection(error):
            lost = _lost() if _others else watchdog.lost_connection_error(error)
        if lost:
            raise lost from None
        raise
    finally:
        over.set()
        _end_others(at_once=failed)
        _leave(wait=False)
        for key in ENVIRONMENT:
            os.environ.pop(key, None)
        os.environ |= before


@contextmanager
def follow_rank_zero() -> Iterator[None]:
    """Any other rank: it joins those that rank 0 waits for, and ends quietly where it is rank 0 that failed."""
    if STARTED_BY_US in os.environ:
        for number in (*ENDING, *SAVING):
            signal.signal(number, signal.SIG_IGN)  # rank 0 says when to stop
        threading.Thread(target=_end_with_rank_0, daemon=True).start()
    try:
        _join()
        yield
        _leave()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)  # nothing is left to do, and gloo's threads now and then abort an interpreter that winds down
    except UserError as error:
        if error.exit_code == Exit.NON_FINITE:  # that one all ranks find together, and rank 0 tells
            watchdog.wait_for_rank_zero()
        else:
            print(f"rank {launcher_env('RANK')} on {socket.gethostname()}: {error}", file=sys.stderr)
        sys.exit(int(error.exit_code))
    except SystemExit:  # agreed on
        watchdog.wait_for_rank_zero()
        raise
    except Exception as error:
        if not watchdog.is_lost_connection(error):
            raise
        print(f"rank {launcher_env('RANK')} on {socket.gethostname()}: the others have gone", file=sys.stderr)
        sys.exit(int(Exit.INTERRUPTED))


def forward_signal(number: int) -> None:
    """Pass a signal on to the processes that this one has started."""
    for process in _others:
        process.send_signal(number)


def _start_others(count: int):
    """Start ranks 1 .. count - 1 on this machine, as torchrun would; returns the store they all meet at."""
    from torch.distributed import TCPStore

    store = TCPStore(LOCALHOST, 0, count, is_master=True, wait_for_workers=False)  # on a port that is free
    values = (LOCALHOST, store.port, count, count, 0, 0, os.getpid())
    os.environ |= {key: str(value) for key, value in zip(ENVIRONMENT, values, strict=True)}
    for number in range(1, count):
        _others.append(
            subprocess.Popen(
                [sys.executable, "-m", "diffusion_lit.train", f"rank={number}"],  # the word is for `ps`
                env=os.environ | {"RANK": str(number), "LOCAL_RANK": str(number)},
                stdin=subprocess.PIPE,  # closes when this process ends, however it ends
                start_new_session=True,  # Ctrl-C reaches rank 0 alone
            )
        )
    return store


def _join(store=None) -> None:
    """Meet the others, at our own store or a launcher's. CPU tensors go by gloo, CUDA tensors by NCCL."""
    import torch
    from torch.distributed import PrefixStore, TCPStore, init_process_group, rendezvous

    watchdog.initialized.set()
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    number, count = launcher_env("RANK"), launcher_env("WORLD_SIZE")
    if STARTED_BY_US in os.environ:
        store = store or TCPStore(LOCALHOST, int(os.environ["MASTER_PORT"]), count, is_master=False)
        init_process_group(backend, store=store, rank=number, world_size=count)
        return
    watchdog.choose_interface()
    store = next(rendezvous("env://"))[0]
    store = PrefixStore(watchdog.agree_on_start_token(store, number, count), store)
    init_process_group(backend, store=store, rank=number, world_size=count)
    watchdog.watch_connections(number, broadcast_from_rank_zero)


def _leave(wait: bool = True) -> None:
    """Close the group. Left open, a process may abort at its very end, and the next job of a sweep cannot meet."""
    if world_size() == 1:
        return
    from torch import distributed

    if wait:
        all_reduce_max(0)  # all have come this far
        watchdog.finished.set()
    distributed.destroy_process_group()


def _watch(over: threading.Event) -> None:
    """End this process if another one is lost and nobody notices: NCCL waits for the dead."""
    while not over.wait(0.5):
        if any(process.poll() for process in _others) and not over.wait(watchdog.GRACE):
            print(f"error: {_lost()}", file=sys.stderr)
            os._exit(int(Exit.INTERRUPTED))


def _end_with_rank_0() -> None:
    os.read(0, 1)  # returns when the pipe closes
    os._exit(int(Exit.INTERRUPTED))


def _lost() -> UserError | None:
    """What became of a process that ended too early, if one did."""
    deadline = time.monotonic() + 1  # its connection is lost before it has quite ended
    while not any(process.poll() for process in _others) and time.monotonic() < deadline:
        time.sleep(0.05)
    for number, process in enumerate(_others, start=1):
        code = process.poll()
        if code:
            how = f"exit code {code}" if code > 0 else f"signal {-code}{' (for lack of memory?)' * (code == -9)}"
            return UserError(
                Exit.INTERRUPTED if code < 0 else code,
                f"rank {number} of {len(_others) + 1} ended with {how}; earlier checkpoints are whole: resume",
            )
    return None


def _end_others(at_once: bool) -> None:
    for process in _others:
        try:
            process.wait(0 if at_once else watchdog.GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdin.close()
    _others.clear()
