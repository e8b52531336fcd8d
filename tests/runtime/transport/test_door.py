"""Door: those it is for come in, whatever strangers do before it; then nothing listens."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import resource
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from runtime.transport import door as door_module
from runtime.transport.door import MOST_STRANGERS, Door, enter
from runtime.transport.handshake import KEY_BYTES, NotAdmitted
from tests.support.traces import listening, nothing_left
from tests.support.trouble import wait_until

KEY = bytes(range(KEY_BYTES))


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    with nothing_left():
        yield


@contextlib.contextmanager
def opened(*seats: int) -> Iterator[tuple[Door, dict[int, socket.socket]]]:
    """A door, and who has come in."""
    lines: dict[int, socket.socket] = {}
    door = Door("127.0.0.1", KEY, seats, lines.__setitem__)
    try:
        yield door, lines
    finally:
        door.close()
        wait_until(lambda: set(seats) == door._awaited | set(lines))  # who has come in a moment ago is there
        for line in lines.values():
            line.close()


def come_in(door: Door, seat: int, key: bytes = KEY) -> socket.socket:
    return enter(door.address, key, seat, time.monotonic() + 60)


def talk(one: socket.socket, other: socket.socket) -> bytes:
    one.sendall(b"any")
    return other.recv(100)


def is_closed(line: socket.socket) -> bool:
    """Whether the other end closes a connection, after all that it has to say."""
    line.settimeout(60)
    with contextlib.suppress(ConnectionResetError):
        while line.recv(1000):
            pass
    return True


def test_the_door_is_closed_when_the_last_one_has_come() -> None:
    with opened(2, 5) as (door, lines):
        with come_in(door, 5) as first:
            assert listening([os.getpid()])
            with come_in(door, 2) as second:
                wait_until(lambda: not listening([os.getpid()]))
                wait_until(lambda: len(lines) == 2)
                assert talk(first, lines[5]) == talk(second, lines[2]) == b"any"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(door.address, timeout=60)


def test_a_seat_that_is_taken_or_not_expected_is_refused_in_a_line(caplog: pytest.LogCaptureFixture) -> None:
    with opened(1, 2) as (door, lines), come_in(door, 1) as first, caplog.at_level(logging.WARNING, "runtime"):
        for seat in (1, 3, 2**31):
            with pytest.raises(NotAdmitted, match=f"{seat} is taken there, or not expected"):
                come_in(door, seat)
        assert talk(first, lines[1]) == b"any", "who is there stays there"
        assert [record.getMessage() for record in caplog.records] == [
            f"who came as rank {seat} was refused: it is there already, or not expected" for seat in (1, 3, 2**31)
        ]
        with pytest.raises(NotAdmitted, match="another key"):
            come_in(door, 2, bytes(KEY_BYTES))
        assert len(caplog.records) == 3, "strangers are worth no line"
        come_in(door, 2).close()


SAID = {
    "nothing": b"",
    "a zero": b"\0",
    "HTTP": b"GET / HTTP/1.1\r\n\r\n" * 5,
    "a proof's length": random.Random(0).randbytes(68),
    "much": random.Random(0).randbytes(10**5),
}


@pytest.mark.parametrize("said", SAID.values(), ids=SAID)
def test_strangers_are_sent_away(said: bytes) -> None:
    with opened(1) as (door, lines):
        for _ in range(3):
            with socket.create_connection(door.address, timeout=60) as stranger:
                with contextlib.suppress(OSError):  # it may close before all is sent
                    stranger.sendall(said)
                    stranger.shutdown(socket.SHUT_WR)
                assert is_closed(stranger)
        assert not lines
        come_in(door, 1).close()


def test_those_who_stay_silent_or_drip_hold_nobody_up_and_are_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(1, 2) as (door, _), contextlib.ExitStack() as stack:

        def stranger() -> socket.socket:
            return stack.enter_context(socket.create_connection(door.address, timeout=60))

        monkeypatch.setattr(door_module, "GREETING_S", 600.0)  # longer than who comes in would wait
        stranger()
        stack.enter_context(come_in(door, 1))
        monkeypatch.setattr(door_module, "GREETING_S", 0.6)
        silent, dripping = stranger(), stranger()
        with contextlib.suppress(OSError):
            for _ in range(60):
                dripping.sendall(b"\0")
                time.sleep(0.03)
        assert is_closed(silent)
        assert is_closed(dripping)
        stack.enter_context(come_in(door, 2))


def test_a_flood_costs_few_descriptors_and_holds_nobody_up() -> None:
    """Connections without end, the last hundred of which are held open."""
    before = len(os.listdir("/proc/self/fd"))
    with opened(1, 2) as (door, _), contextlib.ExitStack() as stack:
        flooding = threading.Event()

        def flood() -> None:
            held: list[socket.socket] = []
            while not flooding.is_set():
                with contextlib.suppress(OSError):
                    held.append(socket.create_connection(door.address, timeout=60))
                if len(held) > 100:
                    held.pop(0).close()
            for line in held:
                line.close()

        strangers = threading.Thread(target=flood)
        strangers.start()
        try:
            wait_until(lambda: len(door._strangers) == MOST_STRANGERS)
            for seat in (1, 2):
                assert len(door._strangers) <= MOST_STRANGERS
                stack.enter_context(come_in(door, seat))
        finally:
            flooding.set()
            strangers.join()
    wait_until(lambda: len(os.listdir("/proc/self/fd")) == before)


def test_a_program_that_runs_out_of_descriptors_goes_on_listening() -> None:
    with opened(1) as (door, _):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        waiting = socket.socket()
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))), hard))
        try:
            waiting.connect(door.address)
            time.sleep(0.2)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            waiting.close()
        come_in(door, 1).close()


def test_who_cannot_come_in_says_so_at_the_deadline() -> None:
    with opened(1) as (door, _):
        address = door.address
    with pytest.raises(ConnectionRefusedError):
        enter(address, KEY, 1, time.monotonic() + 0.2)
