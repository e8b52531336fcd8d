"""connect_mesh: every two ranks of a start are connected, and nobody else is."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from runtime.errors import StartupError
from runtime.transport.door import enter
from runtime.transport.handshake import KEY_BYTES, HostAndPort, NotAdmitted
from runtime.transport.mesh import connect_mesh
from runtime.transport.rendezvous import Rendezvous
from tests.support.traces import listening, nothing_left

SECRET = bytes(range(KEY_BYTES))


def connected(
    world: int, timeout_s: float = 60, told: Callable[[int, HostAndPort], None] = lambda rank, address: None, **odd: Any
) -> list[dict[int, socket.socket] | Exception]:
    """What connect_mesh gives every rank, or raises. told: called with each rank's address before others know it."""
    meetings: list[Rendezvous] = []

    def announce(rank: int, address: HostAndPort) -> None:
        told(rank, address)
        for other in range(world):
            if other != rank:
                meetings[other].put(rank, address)

    for rank in range(world):
        meetings.append(Rendezvous(lambda address, rank=rank: announce(rank, address), timeout_s))
    got: list[Any] = [None] * world

    def connect(rank: int) -> None:
        secret = odd.get(f"secret_{rank}", SECRET)
        try:
            got[rank] = connect_mesh(rank, world, host="127.0.0.1", secret=secret, rendezvous=meetings[rank])
        except Exception as error:
            got[rank] = error
            for meeting in meetings:  # as the driver does
                meeting.fail(error)

    threads = [threading.Thread(target=connect, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return got


def talk_and_close(mesh: list[Any]) -> None:
    for rank, lines in enumerate(mesh):
        assert sorted(lines) == [peer for peer in range(len(mesh)) if peer != rank]
        for peer, line in lines.items():
            line.sendall(f"{rank} to {peer}".encode())
            assert mesh[peer][rank].recv(100) == f"{rank} to {peer}".encode()
    for lines in mesh:
        for line in lines.values():
            line.close()


@pytest.mark.parametrize("world", [1, 2, 4])
def test_every_two_ranks_are_connected_and_nothing_listens_then(world: int) -> None:
    with nothing_left():
        mesh = connected(world)
        assert not listening([os.getpid()])
        talk_and_close(mesh)


def test_strangers_at_every_door_gain_and_cost_nothing() -> None:
    with nothing_left(), contextlib.ExitStack() as stack:

        def intrude(_rank: int, address: HostAndPort) -> None:
            for said in (b"", (1).to_bytes(8, "big"), os.urandom(68)):
                line = stack.enter_context(socket.create_connection(address, timeout=60))
                line.sendall(said)
            with pytest.raises(NotAdmitted):
                enter(address, bytes(KEY_BYTES), 2, time.monotonic() + 60)

        talk_and_close(connected(3, told=intrude))


def test_a_rank_of_another_start_is_not_let_in() -> None:
    with nothing_left():
        got = connected(2, secret_1=bytes(KEY_BYTES))
    assert isinstance(got[1], StartupError)
    assert "the ranks cannot connect: rank 1 does not reach rank 0 at 127.0.0.1: it has another key" in str(got[1])
    assert isinstance(got[0], StartupError)


def test_a_rank_that_never_comes_is_noticed_at_the_deadline() -> None:
    with nothing_left():
        meeting = Rendezvous(lambda _address: None, timeout_s=0.2)
        with pytest.raises(StartupError, match=r"rank 0 at 127\.0\.0\.1 was not reached by every rank from 1 on"):
            connect_mesh(0, 2, host="127.0.0.1", secret=SECRET, rendezvous=meeting)
