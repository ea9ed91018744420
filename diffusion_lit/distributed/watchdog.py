"""What processes on several machines need: the interface between them, and to notice a machine that has fallen silent.

A host without power, or behind a cut cable, tells nobody: who waits for its part waits on, half an hour with gloo, ten
minutes with NCCL. So every rank holds a connection to rank 0 on which nothing is said after a greeting. The kernels of
both hosts see to it that the other one is there, however busy the processes are. No torch.
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
from typing import TypeVar

from diffusion_lit.system.errors import Exit, UserError
from diffusion_lit.system.platform import fcntl

T = TypeVar("T")
GRACE = 10  # seconds that the main thread has to find out for itself, and to end in order
KEEPALIVE = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 4}  # a host is lost after 60 seconds of silence
START_TIMEOUT = 1800  # seconds for all ranks to start
SHUTDOWN_TIMEOUT = 90  # seconds that rank 0 may take to end: loggers send what they still have
TOKEN_BYTES = 16  # bytes by which rank 0 knows its own ranks
EXTERNAL_ADDRESS = "192.0.2.1"  # of no network (RFC 5737): the way there is the default route
GET_ADDRESS = 0x8915  # SIOCGIFADDR of Linux
initialized = threading.Event()  # this process has been one of several
finished = threading.Event()  # the ranks have parted in order
rank_zero_lost = threading.Event()  # rank 0 has closed its connection
lost_hosts: list[str] = []  # who was lost, in words


def local_address(towards: str) -> str:
    """The IPv4 address of this machine on the way to another one; nothing is sent.

    Where a table of hosts gives a machine's own name to loopback, as Debian's does, that of the default route.
    """
    for target in (towards, EXTERNAL_ADDRESS):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((target, 9))
            except OSError:
                continue
            if not probe.getsockname()[0].startswith("127."):
                return probe.getsockname()[0]
    return "127.0.0.1"


def interface_of_address(address: str) -> str | None:
    """The network interface that has an IPv4 address; None where that cannot be known."""
    if fcntl is None:
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            try:
                found = fcntl.ioctl(any_socket, GET_ADDRESS, struct.pack("256s", name.encode()[:15]))
            except OSError:  # it has none
                continue
            if socket.inet_ntoa(found[20:24]) == address:
                return name
    return None


def choose_interface() -> None:
    """Gloo takes the address that the name of this machine has, often loopback; here, what reaches the others."""
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        return  # there are no others
    name = interface_of_address(local_address(os.environ["MASTER_ADDR"]))
    if name:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def agree_on_start_token(store, rank: int, count: int) -> str:
    """A word that the ranks of this start share, and none of an earlier one.

    torchrun's store outlives the processes that it starts again, and counts of restarts differ between hosts; without
    this gloo may find the addresses of processes that are no more.

    Args:
        store: that all of them reach, of torch.distributed.

    Raises:
        UserError: exit 75 on rank 0, if some do not come.
    """
    if rank:
        own = secrets.token_hex(8)
        store.set(f"hello/{rank}", own)
        word = store.get(f"welcome/{own}").decode()  # waits
        store.set(f"thanks/{word}/{rank}", "")
        return word
    word, missing, until = secrets.token_hex(8), set(range(1, count)), time.monotonic() + START_TIMEOUT
    while missing:
        for other in missing:
            if store.check([f"hello/{other}"]):  # an old one, perhaps: then nobody listens
                store.set(f"welcome/{store.get(f'hello/{other}').decode()}", word)
        time.sleep(0.05)
        missing = {other for other in missing if not store.check([f"thanks/{word}/{other}"])}
        if time.monotonic() > until:
            told = (
                f"of {count} processes these did not come within {START_TIMEOUT // 60} minutes: ranks {sorted(missing)}"
            )
            raise UserError(Exit.INTERRUPTED, told)
    return word


@contextmanager
def exit_cleanly() -> Iterator[None]:
    """What the main line of a process is wrapped in. One that has met others ends without winding the interpreter down,
    after all that it has registered in here for its end: gloo's threads now and then abort one that winds down, and the
    exit code would be that of the abort.
    """
    code = 0

    def end() -> None:  # registered first, it comes last
        if initialized.is_set():
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    atexit.register(end)
    try:
        yield
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        raise
    except BaseException:
        code = 1
        raise


# ------------------------------------------------------------------------------------------------ noticing a loss


def watch_connections(rank: int, from_first: Callable[[T], T]) -> None:
    """End this process, with exit code 75, if rank 0 is lost or, on rank 0, if any other is, and the main thread is
    still waiting after GRACE.

    Args:
        from_first: gives rank 0's value to all ranks.
    """
    finished.clear()
    rank_zero_lost.clear()
    lost_hosts.clear()
    listener = socket.create_server(("", 0)) if rank == 0 else None
    token = secrets.token_bytes(TOKEN_BYTES)
    place = listener and (local_address(os.environ["MASTER_ADDR"]), listener.getsockname()[1])
    token, place = from_first((token, place))
    if listener:
        threading.Thread(target=_watch_all, args=(listener, token), daemon=True).start()
        return
    try:
        connection = socket.create_connection(place, timeout=30)
        connection.sendall(token + f"rank {rank} on {socket.gethostname()}".encode())
    except OSError as error:
        told = f"rank {rank}: no connection to {place[0]} port {place[1]} ({error}): a lost host may be noticed late"
        print(told, file=sys.stderr)
        return
    _keep_alive(connection)
    threading.Thread(target=_watch_first, args=(connection,), daemon=True).start()


def wait_for_rank_zero() -> None:
    """On any other rank: let rank 0, which tells what all have found, end first. A launcher that sees one process fail
    ends the others at once.
    """
    rank_zero_lost.wait(SHUTDOWN_TIMEOUT)


def lost_connection_error(error: BaseException) -> UserError:
    """Who has gone, for a main thread that finds its connection lost."""
    time.sleep(1)  # for the thread that watches
    who = (lost_hosts or [f"another process has gone ({str(error).splitlines()[0]})"])[0]
    return UserError(Exit.INTERRUPTED, f"{who}; earlier checkpoints are whole: resume")


def is_lost_connection(error: BaseException) -> bool:
    """Gloo and NCCL have no error of their own for a peer that has gone."""
    words = ("connection closed", "connection reset", "connection refused", "broken pipe", "remote process exited")
    words += ("timed out waiting", "socket has timed out", "no route to host", "network is unreachable")
    return isinstance(error, RuntimeError | OSError) and any(word in str(error).lower() for word in words)


def _keep_alive(connection: socket.socket) -> None:
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _watch_first(connection: socket.socket) -> None:
    why = _heard(connection)[1]
    rank_zero_lost.set()
    _lost("rank 0", why)


def _watch_all(listener: socket.socket, token: bytes) -> None:
    ready = selectors.DefaultSelector()
    ready.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in ready.select():
            if key.fileobj is listener:
                connection, _ = listener.accept()
                _keep_alive(connection)
                ready.register(connection, selectors.EVENT_READ, "")
                continue
            words, why = _heard(key.fileobj)
            if words.startswith(token):
                ready.modify(key.fileobj, selectors.EVENT_READ, words[TOKEN_BYTES:].decode(errors="replace"))
            elif key.data:
                _lost(key.data, why)
                return
            else:  # somebody else's
                ready.unregister(key.fileobj)
                key.fileobj.close()


def _heard(connection: socket.socket) -> tuple[bytes, str]:
    try:
        return connection.recv(1024), "its connection was closed"
    except OSError as error:
        return b"", (error.strerror or str(error)).lower()


def _lost(who: str, why: str) -> None:
    lost_hosts.append(f"{who} has gone ({why})")
    if not finished.wait(GRACE):
        print(f"error: {lost_hosts[0]}; earlier checkpoints are whole: resume", file=sys.stderr, flush=True)
        os._exit(int(Exit.INTERRUPTED))
