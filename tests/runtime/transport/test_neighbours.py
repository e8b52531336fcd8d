"""find_neighbours: which ranks share memory is found by trying, whatever machines say of themselves."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch

from runtime.transport import neighbours
from runtime.transport.door import enter
from runtime.transport.handshake import KEY_BYTES, NotAdmitted
from runtime.transport.mailbox import MessageKey
from runtime.transport.neighbours import boot_id, find_neighbours
from runtime.transport.rendezvous import Rendezvous
from runtime.transport.same_machine import SameMachineMailbox
from runtime.transport.shared_memory import map_file
from tests.support.mailboxes import WIRES, tcp_line
from tests.support.traces import listening, nothing_left

SECRET = bytes(range(KEY_BYTES))
_NEW_NETWORK = 0x40000000  # CLONE_NEWNET
Lines = dict[int, socket.socket]


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    with nothing_left():
        yield


def meeting(timeout_s: float = 60) -> Rendezvous:
    return Rendezvous(lambda _address: None, timeout_s)


@contextlib.contextmanager
def tcp_mesh(world: int) -> Iterator[list[Lines]]:
    mesh: list[Lines] = [{} for _ in range(world)]
    for rank in range(world):
        for other in range(rank + 1, world):
            mesh[rank][other], mesh[other][rank] = tcp_line()
    try:
        yield mesh
    finally:
        for lines in mesh:
            for line in lines.values():
                line.close()


def found_by(mesh: list[Lines], meetings: Mapping[int, Rendezvous] | None = None, **secrets: bytes) -> list[Any]:
    """What each rank finds, or raises; each is a thread of the name of its number."""
    got: list[Any] = [None] * len(mesh)

    def find(rank: int) -> None:
        secret = secrets.get(f"secret_{rank}", SECRET)
        try:
            got[rank] = find_neighbours(
                rank, mesh[rank], secret=secret, rendezvous=meetings[rank] if meetings else meeting()
            )
        except OSError as error:
            got[rank] = error

    threads = [threading.Thread(target=find, args=(rank,), name=str(rank)) for rank in range(len(mesh))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return got


def pairs(found: list[Lines]) -> set[tuple[int, int]]:
    """Which ranks have found each other, after a word has gone both ways over each line; closes the lines."""
    for rank, lines in enumerate(found):
        for peer, line in lines.items():
            line.send(f"{rank} to {peer}".encode())
            assert found[peer][rank].recv(100) == f"{rank} to {peer}".encode()
    for lines in found:
        for line in lines.values():
            line.close()
    return {(rank, peer) for rank, lines in enumerate(found) for peer in lines}


def by_rank(answers: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have ranks be on machines with these boot ids."""
    monkeypatch.setattr(neighbours, "boot_id", lambda: answers[int(threading.current_thread().name)])


ALL_OF_THREE = {(rank, peer) for rank in range(3) for peer in range(3) if rank != peer}


def test_ranks_of_one_machine_find_each_other_and_then_nothing_listens(caplog: pytest.LogCaptureFixture) -> None:
    with tcp_mesh(3) as mesh:
        found = found_by(mesh)
        assert not listening([os.getpid()])
        assert pairs(found) == ALL_OF_THREE
    assert not caplog.records


def test_what_they_have_is_a_line_for_messages_through_shared_memory() -> None:
    with tcp_mesh(2) as mesh:
        made = [
            SameMachineMailbox(
                rank, lines, torch.device("cpu"), plan_hash=7, announce_timeout_s=1, on_error=lambda error: None
            )
            for rank, lines in enumerate(found_by(mesh))
        ]
        for box in made:
            box.register(0, WIRES)
        made[0].send([1], MessageKey(0, 0, 0, 0), torch.ones(2, 3))
        made[1].wait(MessageKey(0, 0, 0, 0), timeout_s=5)
        assert made[1].take(MessageKey(0, 0, 0, 0)).eq(1).all()
        for box in made:
            box.close()


def test_ranks_of_other_machines_are_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Their hosts may have one name, which nobody asks for."""
    monkeypatch.setattr("socket.gethostname", lambda: "localhost")
    by_rank(["a", "b", "a", "b", "", ""], monkeypatch)
    with tcp_mesh(6) as mesh:
        assert pairs(found_by(mesh)) == {(0, 2), (2, 0), (1, 3), (3, 1)}
    assert not caplog.records


def test_a_machine_that_does_not_tell_its_boot_id_has_no_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(boot_id()) == 36
    monkeypatch.setattr(neighbours, "_BOOT_ID", neighbours._BOOT_ID / "nowhere")
    assert boot_id() == ""


def the_warning(caplog: pytest.LogCaptureFixture) -> str:
    (record,) = (record for record in caplog.records if record.levelno >= logging.WARNING)
    return record.getMessage()


def refused(*_: Any) -> Any:
    raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")


def no_memory(*_: Any) -> Any:
    raise OSError(errno.EPERM, "Operation not permitted")


def another_page(file: int, size_bytes: int) -> torch.Tensor:
    return map_file(file, size_bytes).clone()


TROUBLE: dict[str, tuple[str, Callable[..., Any], str]] = {
    "another network": ("enter", refused, "rank 1 does not find the other's socket: [Errno 111] Connection refused"),
    "no anonymous files": ("new_file", no_memory, "the other has no memory to share: [Errno 1] Operation"),
    "memory of another machine": ("map_file", another_page, "what the other wrote there is not seen"),
    "an answer that is lost": ("_answer_to", lambda _: os.urandom(32), "what it writes there is not seen"),
}


@pytest.mark.parametrize("trouble", TROUBLE)
def test_ranks_of_one_machine_that_share_no_memory_are_told_so_once(
    trouble: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    name, stands_for_it, why = TROUBLE[trouble]
    monkeypatch.setattr(neighbours, name, stands_for_it)
    with tcp_mesh(2) as mesh:
        assert found_by(mesh) == [{}, {}]
        assert pairs_by_tcp_still_talk(mesh)
    assert the_warning(caplog).startswith("rank 0 and rank 1 are on one machine, by its boot id, and share no memory (")
    assert why in the_warning(caplog)


def pairs_by_tcp_still_talk(mesh: list[Lines]) -> bool:
    mesh[0][1].sendall(b"any")
    return mesh[1][0].recv(100) == b"any"


def test_one_that_shares_no_memory_does_not_keep_others_from_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def only_not_two(address: Any, key: bytes, seat: int, *rest: Any) -> socket.socket:
        return refused() if seat == 2 else enter(address, key, seat, *rest)

    monkeypatch.setattr(neighbours, "enter", only_not_two)
    with tcp_mesh(3) as mesh:
        assert pairs(found_by(mesh)) == {(0, 1), (1, 0)}
    said = [record.getMessage().partition(" are on")[0] for record in caplog.records]
    assert sorted(said) == ["rank 0 and rank 2", "rank 1 and rank 2"], "each rank of its own"


def test_containers_with_networks_of_their_own_do_not_find_each_other() -> None:
    """Really: a process in another network namespace, with a TCP connection that was made before."""
    unshare = ctypes.CDLL(None).unshare
    with tcp_mesh(2) as mesh:
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                mesh[0][1].close()
                if unshare(_NEW_NETWORK):
                    os._exit(2)
                os._exit(0 if find_neighbours(1, mesh[1], secret=SECRET, rendezvous=meeting()) == {} else 1)
            os._exit(3)
        mesh[1][0].close()
        found: Any = None
        with contextlib.suppress(OSError):
            found = find_neighbours(0, mesh[0], secret=SECRET, rendezvous=meeting())
        if (status := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])) == 2:
            pytest.skip("this user cannot make a network namespace")
        assert (found, status) == ({}, 0)


def test_strangers_at_the_door_gain_and_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[socket.socket] = []

    def intrude(address: Any, key: bytes, seat: int, *rest: Any) -> socket.socket:
        with pytest.raises(NotAdmitted):
            enter(address, bytes(KEY_BYTES), seat, *rest)
        for said in (b"any", os.urandom(68), os.urandom(500)):
            held.append(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            held[-1].connect("\0" + address[0][1:])
            held[-1].send(said)
        return enter(address, key, seat, *rest)

    monkeypatch.setattr(neighbours, "enter", intrude)
    with tcp_mesh(3) as mesh:
        assert pairs(found_by(mesh)) == ALL_OF_THREE
    for line in held:
        line.close()


def test_who_knows_another_secret_is_not_let_in(caplog: pytest.LogCaptureFixture) -> None:
    with tcp_mesh(2) as mesh:
        assert found_by(mesh, secret_1=bytes(KEY_BYTES)) == [{}, {}]
    assert "it has another key" in the_warning(caplog)


@pytest.mark.parametrize("said", [b"", b"\0", b"\0\x05ab"])
def test_a_rank_that_ends_meanwhile_is_noticed_at_once(said: bytes) -> None:
    with tcp_mesh(2) as mesh:
        mesh[1][0].sendall(said)
        mesh[1][0].close()
        with pytest.raises(OSError, match=r"rank 1 has ended|reset"):
            find_neighbours(0, mesh[0], secret=SECRET, rendezvous=meeting())


def test_a_rank_that_ends_between_two_words_is_noticed_at_once() -> None:
    with tcp_mesh(2) as mesh:
        own = boot_id().encode()
        mesh[1][0].sendall(len(own).to_bytes(2, "big") + own)
        mesh[1][0].shutdown(socket.SHUT_WR)
        with pytest.raises(ConnectionError, match="rank 1 has ended"):
            find_neighbours(0, mesh[0], secret=SECRET, rendezvous=meeting())


def test_a_rank_that_says_nothing_is_noticed_at_the_deadline() -> None:
    with (
        tcp_mesh(2) as mesh,
        pytest.raises(TimeoutError, match="rank 1 does not say whether it is on rank 0's machine"),
    ):
        find_neighbours(0, mesh[0], secret=SECRET, rendezvous=meeting(0.1))


def test_who_waits_is_told_that_the_start_has_failed_elsewhere() -> None:
    one = meeting()
    threading.Timer(0.05, one.fail, (RuntimeError("rank 2 has failed"),)).start()
    begin = time.monotonic()
    with tcp_mesh(2) as mesh, pytest.raises(ConnectionError, match="failed elsewhere"):
        find_neighbours(0, mesh[0], secret=SECRET, rendezvous=one)
    assert time.monotonic() - begin < 30
