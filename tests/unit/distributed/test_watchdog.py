"""What holds several hosts together, as far as one can show it; the rest is in tests/cluster."""

import queue
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import HashStore

from diffusion_lit.distributed import consistency, watchdog
from diffusion_lit.system.errors import Exit, UserError


@pytest.fixture
def watched(monkeypatch) -> tuple[queue.Queue, bytes, tuple[str, int]]:
    """(who was lost, the token, the address) of a rank 0 that watches."""
    lost, shared = queue.Queue(), []
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setattr(watchdog, "_end_after_loss", lambda who, why: lost.put((who, why)))
    watchdog.watch_connections(0, lambda value: shared.append(value) or value)
    ((token, place),) = shared
    return lost, token, place


def test_a_rank_that_has_gone_is_named_and_a_stranger_is_not_taken_for_one(watched):
    lost, token, place = watched
    with socket.create_connection(place) as stranger:
        stranger.sendall(b"GET / HTTP/1.0\r\n\r\n")
    with socket.create_connection(place):
        pass
    with socket.create_connection(place) as rank:
        rank.sendall(token + b"rank 3 on host2")
        with pytest.raises(queue.Empty):
            lost.get(timeout=0.3)
    assert lost.get(timeout=30) == ("rank 3 on host2", "its connection was closed")


def test_rank_0_that_has_gone_is_noticed(watched, monkeypatch):
    lost, token, _ = watched
    with socket.create_server(("127.0.0.1", 0)) as first:
        watchdog.watch_connections(1, lambda value: (token, first.getsockname()))
        connection, _ = first.accept()
        assert connection.recv(1024) == token + f"rank 1 on {socket.gethostname()}".encode()
        with pytest.raises(queue.Empty):
            lost.get(timeout=0.3)
        assert not watchdog.rank_zero_lost.is_set()
        connection.close()
    assert lost.get(timeout=30)[0] == "rank 0"
    assert watchdog.rank_zero_lost.is_set()  # who waits for it to end need not wait any more


def test_who_has_gone_is_told_or_else_what_the_network_said(monkeypatch):
    monkeypatch.setattr(watchdog.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(watchdog, "lost_hosts", [])
    assert "another process is lost (broken pipe)" in str(
        watchdog.lost_connection_error(RuntimeError("broken pipe\nat line 7"))
    )
    monkeypatch.setattr(watchdog, "lost_hosts", ["rank 3 on host2 is lost (no route to host)"])
    assert "rank 3 on host2 is lost" in str(watchdog.lost_connection_error(RuntimeError("broken pipe")))


def test_a_rank_that_cannot_reach_rank_0_says_so_and_trains(capsys):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        place = closed.getsockname()
    watchdog.watch_connections(1, lambda value: (b"", place))
    assert "A lost host is noticed late" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="gloo chooses by itself there")
def test_the_interface_of_an_address():
    assert watchdog.interface_of_address("127.0.0.1") == "lo"
    assert watchdog.interface_of_address("192.0.2.77") is None


@pytest.mark.parametrize(("local", "chosen"), [("1", "eth7"), ("2", None)])
def test_the_interface_is_chosen_where_there_are_other_hosts(monkeypatch, local, chosen):
    for key, value in {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": local}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    monkeypatch.setattr(watchdog, "interface_of_address", lambda address: "eth7")
    watchdog.choose_interface()
    assert watchdog.os.environ.get("GLOO_SOCKET_IFNAME") == chosen


def test_the_difference_of_two_copies_names_hosts_and_images():
    ours = {f"a/{k}.png": str(k) for k in range(6)}
    theirs = {name: digest for name, digest in ours.items() if name != "a/3.png"} | {"a/5.png": "x", "b.png": "y"}
    here = ("host1", ours, 6)
    assert consistency.describe_data_difference(here, ("host2", theirs, 6)) == (
        "the images on host2 (6) differ from those on host1 (6):\n"
        "  missing on host2: a/3.png\n"
        "  missing on host1: b.png\n"
        "  with different content: a/5.png\n"
        "Give every host the same copy."
    )
    message = consistency.describe_data_difference(here, ("host2", {}, 0))
    assert "missing on host2: a/0.png, a/1.png, a/2.png and 3 more" in message
    reordered = dict(reversed(ours.items()))
    assert "the order of the images differs" in consistency.describe_data_difference(here, ("host2", reordered, 6))


def test_an_error_of_another_rank_is_raised_with_its_host(monkeypatch):
    monkeypatch.setattr(consistency.collectives, "all_gather", lambda own: [None, (3, "no such folder", "host2")])
    with pytest.raises(UserError, match="rank 1 on host2: no such folder") as raised:
        consistency.raise_on_all_ranks(None)
    assert raised.value.exit_code == Exit.DATA
    monkeypatch.setattr(consistency.collectives, "rank", lambda: 1)
    with pytest.raises(SystemExit, match="3"):
        consistency.raise_on_all_ranks(None)


def test_ranks_that_are_started_again_do_not_take_a_word_of_those_before(monkeypatch):
    """Of torchrun's store, which keeps what the first start wrote into it."""
    store, words = HashStore(), []
    for _ in range(3):
        with ThreadPoolExecutor(3) as ranks:
            later = [ranks.submit(watchdog.agree_on_start_token, store, rank, 3) for rank in (1, 2)]
            time.sleep(0.1)  # old words are there before rank 0 is
            met = {
                ranks.submit(watchdog.agree_on_start_token, store, 0, 3).result(60),
                *[found.result(60) for found in later],
            }
        assert len(met) == 1
        words += met
    assert len(set(words)) == 3
    monkeypatch.setattr(watchdog, "START_TIMEOUT", 0)
    with pytest.raises(UserError, match=r"ranks 1, 2 of 3 did not start within"):
        watchdog.agree_on_start_token(store, 0, 3)
