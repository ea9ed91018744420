"""Notice that another host of a run is lost, and end this process instead of waiting for it.

A host that loses power or network is silent, so the other ranks wait in their next
collective: half an hour with gloo, ten minutes with NCCL. Therefore each rank keeps one TCP
connection to rank 0 open, with keep-alive probes that the kernels of both hosts send even
while the processes are busy. When a connection breaks, a thread waits `GRACE` seconds for
the main thread to notice the loss and to end in order, then ends the process with exit code
75.

The module also chooses the network interface for gloo, lets the ranks of one start find
each other in a store that may hold entries of an earlier start, and ends a process without
interpreter shutdown. It does not import torch.
"""

import atexit
import logging
import os
import secrets
import selectors
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from diffusion_lit.system.errors import Exit, UserError
from diffusion_lit.system.platform import fcntl

GRACE = 10  # seconds in which the main thread can notice a loss by itself and end in order
KEEPALIVE = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 4}  # a host is lost after 60 s of silence
START_TIMEOUT = 1800  # seconds in which all ranks must start
SHUTDOWN_TIMEOUT = 90  # seconds in which rank 0 must end; loggers may still be sending
TOKEN_BYTES = 16
EXTERNAL_ADDRESS = "192.0.2.1"  # reserved for documentation (RFC 5737), so it is reached by the default route
SIOCGIFADDR = 0x8915  # ioctl of Linux: the address of an interface
RESUME_HINT = "Earlier checkpoints are intact: resume the run."

initialized = threading.Event()  # this process is or was one of several
finished = threading.Event()  # all ranks have left the process group in order
rank_zero_lost = threading.Event()  # rank 0 has closed its connection
lost_hosts: list[str] = []  # messages on the ranks that were lost


# ------------------------------------------------------------------------------------------------ starting


def local_address(target: str) -> str:
    """Return the IPv4 address that this machine uses to reach a target. Nothing is sent.

    If the hosts file maps the target to loopback, as Debian does for a machine's own name,
    return the address of the default route.
    """
    for host in (target, EXTERNAL_ADDRESS):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((host, 9))
            except OSError:
                continue
            if not probe.getsockname()[0].startswith("127."):
                return probe.getsockname()[0]
    return "127.0.0.1"


def interface_of_address(address: str) -> str | None:
    """Return the network interface that has an IPv4 address, or None if it cannot be determined."""
    if fcntl is None:
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                reply = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:  # this interface has no address
                continue
            if socket.inet_ntoa(reply[20:24]) == address:
                return name
    return None


def choose_interface() -> None:
    """Set GLOO_SOCKET_IFNAME to the interface that reaches the other hosts.

    Gloo would take the address that the name of this machine resolves to, which is often
    loopback.
    """
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        return  # all ranks are on this machine
    name = interface_of_address(local_address(os.environ["MASTER_ADDR"]))
    if name:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def agree_on_start_token(store, rank: int, count: int) -> str:
    """Return a random token that the ranks of this start share, and that no earlier start has used.

    The store of torchrun outlives the processes that it restarts, so gloo could read
    addresses of dead processes. The restart counts differ between hosts and cannot serve as
    the token. Each rank greets rank 0 with a random key of its own, gets the token under
    that key, and confirms it.

    Args:
        store: a `torch.distributed.Store` that all ranks reach.
        rank: rank of this process.
        count: number of ranks.

    Raises:
        UserError: exit 75 on rank 0 if some ranks do not start in time.
    """
    if rank:
        own_key = secrets.token_hex(8)
        store.set(f"hello/{rank}", own_key)
        token = store.get(f"token/{own_key}").decode()  # waits
        store.set(f"confirmed/{token}/{rank}", "")
        return token
    token, missing, deadline = secrets.token_hex(8), set(range(1, count)), time.monotonic() + START_TIMEOUT
    while missing:
        for other in missing:
            if store.check([f"hello/{other}"]):  # may be of an earlier start, then no process reads the answer
                store.set(f"token/{store.get(f'hello/{other}').decode()}", token)
        time.sleep(0.05)
        missing = {other for other in missing if not store.check([f"confirmed/{token}/{other}"])}
        if time.monotonic() > deadline:
            ranks = ", ".join(map(str, sorted(missing)))
            message = f"ranks {ranks} of {count} did not start within {START_TIMEOUT // 60} minutes. Check their hosts."
            raise UserError(Exit.INTERRUPTED, message)
    return token


@contextmanager
def exit_cleanly() -> Iterator[None]:
    """Wrap the main function: a process that was one of several ends by `os._exit`, with the right exit code.

    Gloo's threads sometimes abort an interpreter that shuts down, which would replace the
    exit code. The exit happens after all functions that were registered with `atexit`
    inside the block.
    """
    code = 0

    def end_process() -> None:  # registered first, so it runs last
        if initialized.is_set():
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    atexit.register(end_process)
    try:
        yield
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        raise
    except BaseException:
        code = 1
        raise


# ------------------------------------------------------------------------------------------------ noticing a loss


def watch_connections(rank: int, broadcast: Callable) -> None:
    """Connect this rank to rank 0 and start the thread that ends the process if a connection breaks.

    Args:
        rank: rank of this process.
        broadcast: returns rank 0's value on all ranks.
    """
    finished.clear()
    rank_zero_lost.clear()
    lost_hosts.clear()
    if rank == 0:
        listener, token = socket.create_server(("", 0)), secrets.token_bytes(TOKEN_BYTES)
        broadcast((token, (local_address(os.environ["MASTER_ADDR"]), listener.getsockname()[1])))
        threading.Thread(target=_watch_other_ranks, args=(listener, token), daemon=True).start()
        return
    token, address = broadcast(None)
    try:
        connection = socket.create_connection(address, timeout=30)
        connection.sendall(token + f"rank {rank} on {socket.gethostname()}".encode())
    except OSError as error:
        message = f"rank {rank}: no connection to {address[0]}:{address[1]} ({error}). A lost host is noticed late."
        print(message, file=sys.stderr)
        return
    _enable_keepalive(connection)
    threading.Thread(target=_watch_rank_zero, args=(connection,), daemon=True).start()


def wait_for_rank_zero() -> None:
    """Let rank 0 report an error that all ranks have seen, and end first.

    A launcher that sees one process fail kills the others at once.
    """
    rank_zero_lost.wait(SHUTDOWN_TIMEOUT)


def lost_connection_error(error: BaseException) -> UserError:
    """Return the error (exit 75) that names the lost rank, for a collective that failed with `error`."""
    time.sleep(1)  # for the thread that watches the connections
    reason = lost_hosts[0] if lost_hosts else f"another process is lost ({str(error).splitlines()[0]})"
    return UserError(Exit.INTERRUPTED, f"{reason}. {RESUME_HINT}")


def is_lost_connection(error: BaseException) -> bool:
    """Return whether a collective failed because a peer is gone. Gloo and NCCL raise no error type of their own."""
    phrases = ("connection closed", "connection reset", "connection refused", "broken pipe", "remote process exited")
    phrases += ("timed out waiting", "socket has timed out", "no route to host", "network is unreachable")
    return isinstance(error, RuntimeError | OSError) and any(phrase in str(error).lower() for phrase in phrases)


def _enable_keepalive(connection: socket.socket) -> None:
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _watch_rank_zero(connection: socket.socket) -> None:
    reason = _receive(connection)[1]
    rank_zero_lost.set()
    _end_after_loss("rank 0", reason)


def _watch_other_ranks(listener: socket.socket, token: bytes) -> None:
    """Accept connections, learn from the greeting who each one is, and act on the first rank that is lost."""
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is listener:
                connection, _ = listener.accept()
                _enable_keepalive(connection)
                selector.register(connection, selectors.EVENT_READ, "")
                continue
            data, reason = _receive(key.fileobj)
            if data.startswith(token):
                name = data[TOKEN_BYTES:].decode(errors="replace")
                selector.modify(key.fileobj, selectors.EVENT_READ, name)
            elif key.data:
                _end_after_loss(key.data, reason)
                return
            else:  # no rank of this run
                selector.unregister(key.fileobj)
                key.fileobj.close()


def _receive(connection: socket.socket) -> tuple[bytes, str]:
    """Return what was received, and the reason if the connection is broken."""
    try:
        return connection.recv(1024), "its connection was closed"
    except OSError as error:
        return b"", (error.strerror or str(error)).lower()


def _end_after_loss(name: str, reason: str) -> None:
    lost_hosts.append(f"{name} is lost ({reason})")
    if not finished.wait(GRACE):
        print(f"error: {lost_hosts[0]}. {RESUME_HINT}", file=sys.stderr, flush=True)
        os._exit(int(Exit.INTERRUPTED))
