"""The handshake: both ends must know the key, each for itself, for this seat, at this address, now."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from runtime.transport.handshake import KEY_BYTES, NotAdmitted, accept_handshake, connect, deadline, set_up

KEY = bytes(range(KEY_BYTES))
PROOF_BYTES = 4 + 32 + KEY_BYTES  # of the connecting side


@contextmanager
def accepting(
    key: bytes = KEY, admit: Callable[[int], bool] = lambda seat: True, told: tuple[str, int] | None = None
) -> Iterator[tuple[tuple[str, int], list[object]]]:
    """An address where connections are accepted one after the other, and what came of each: data or the error.

    told: the address that the accepting side believes to have.
    """
    outcome: list[object] = []

    def accept() -> None:
        while True:
            try:
                line, _ = listening.accept()
            except OSError:
                return
            with line:
                set_up(line)
                try:
                    accept_handshake(line, key, told or address, admit)
                    outcome.append(line.recv(100))
                except OSError as error:
                    outcome.append(error)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = listening.getsockname()[:2]
        thread = threading.Thread(target=accept)
        thread.start()
        yield address, outcome
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(timeout=60)


@contextmanager
def answering(answer: Callable[[socket.socket], None]) -> Iterator[tuple[str, int]]:
    """An address where one connection is accepted and answered as the function says."""

    def accept() -> None:
        line, _ = listening.accept()
        with line, contextlib.suppress(ConnectionResetError):
            answer(line)
            while line.recv(100):
                pass

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=accept)
        thread.start()
        yield listening.getsockname()[:2]
        thread.join(timeout=60)


def greeting_of(address: tuple[str, int]) -> bytes:
    """What an accepting side says first, with its challenge."""
    with socket.create_connection(address, timeout=60) as line:
        return line.recv(1000)


def test_both_ends_that_know_the_key_are_connected_for_a_seat() -> None:
    seats: list[int] = []
    with (
        accepting(admit=lambda seat: seats.append(seat) is None) as (address, outcome),
        connect(address, KEY, 2**32 - 1, timeout_s=60) as line,
    ):
        line.sendall(b"any message")
    assert outcome == [b"any message"]
    assert seats == [2**32 - 1]


def test_a_connecting_end_without_the_key_is_refused() -> None:
    with accepting() as (address, outcome), pytest.raises(NotAdmitted, match="it has another key"):
        connect(address, bytes(KEY_BYTES), 1, timeout_s=60)
    assert "did not prove" in str(outcome[0])


def test_a_seat_that_is_not_free_is_refused() -> None:
    with accepting(admit=lambda seat: False) as (address, outcome), pytest.raises(NotAdmitted, match="7 is taken"):
        connect(address, KEY, 7, timeout_s=60)
    assert "not free" in str(outcome[0])


def test_a_proof_is_of_no_use_a_second_time() -> None:
    """What a sound connection has sent, recorded and sent again."""
    heard = bytearray()
    with accepting() as (address, outcome):

        def relay(line: socket.socket) -> None:
            with socket.create_connection(address, timeout=60) as onward:
                line.sendall(onward.recv(1000))
                while len(heard) < PROOF_BYTES:
                    heard.extend(line.recv(1000))
                onward.sendall(heard)
                line.sendall(onward.recv(1000))

        with answering(relay) as elsewhere, pytest.raises(NotAdmitted, match="another key"):
            connect(elsewhere, KEY, 1, timeout_s=60)  # passed on by another address: not even the first time
        for _ in range(3):
            with socket.create_connection(address, timeout=60) as again:
                again.recv(1000)
                again.sendall(heard)
                assert again.recv(1000) == bytes(KEY_BYTES)
    assert len(outcome) == 4
    assert all("did not prove" in str(error) for error in outcome)


def test_a_recorded_proof_of_the_same_address_is_of_no_use_either() -> None:
    with accepting(told=("there", 1)) as (address, outcome):
        with socket.socket() as line:  # a connecting end of that address, as far as it knows
            line.connect(address)
            greeting = line.recv(1000)
            line.sendall(heard := _answer(greeting, ("there", 1)))
            assert line.recv(1000) != bytes(KEY_BYTES)
        with socket.create_connection(address, timeout=60) as again:
            again.recv(1000)
            again.sendall(heard)
            assert again.recv(1000) == bytes(KEY_BYTES)
    assert outcome[0] == b""
    assert "did not prove" in str(outcome[1])


def _answer(greeting: bytes, address: tuple[str, int]) -> bytes:
    """What a connecting end that knows the key sends."""
    from runtime.transport import handshake

    seat, ours = (1).to_bytes(4, "big"), bytes(32)
    return seat + ours + handshake._proof(KEY, b"connecting", address, seat, greeting[-32:], ours)


def test_what_an_accepting_end_proves_is_none_of_a_connecting_one() -> None:
    """Its own challenge and proof, sent back to it; and a proof for one seat with the number of another."""
    with accepting(told=("there", 1)) as (address, outcome):
        for change in (
            lambda sent: sent[:4] + sent[4:36] + bytes(KEY_BYTES),
            lambda sent: (2).to_bytes(4, "big") + sent[4:],
            lambda sent: sent[:4] + b"\1" + sent[5:],
            lambda sent: sent[:-1] + bytes([sent[-1] ^ 1]),
        ):
            with socket.create_connection(address, timeout=60) as line:
                greeting = line.recv(1000)
                line.sendall(change(_answer(greeting, ("there", 1))))
                assert line.recv(1000) == bytes(KEY_BYTES)
    assert len(outcome) == 4
    assert all(isinstance(error, ConnectionError) for error in outcome)


def test_an_accepting_end_without_the_key_is_refused() -> None:
    """It lets anybody in, whatever the answer to its challenge; then it must prove itself."""
    with accepting() as (address, _):
        greeting = greeting_of(address)

    def let_in(line: socket.socket) -> None:
        line.sendall(greeting)
        line.recv(1000)
        line.sendall(bytes(range(KEY_BYTES)))

    with answering(let_in) as elsewhere, pytest.raises(ConnectionError, match="did not prove"):
        connect(elsewhere, KEY, 1, timeout_s=60)


def test_whoever_speaks_something_else_is_refused() -> None:
    with (
        answering(lambda line: line.sendall(b"HTTP/1.1 400 Bad Request\r\n" * 9)) as address,
        pytest.raises(ConnectionError, match="did not prove"),
    ):
        connect(address, KEY, 1, timeout_s=60)


def test_a_silent_accepting_end_is_given_up_at_the_deadline() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,  # the system accepts, nobody answers
        pytest.raises(ConnectionError, match="it closed it"),
    ):
        connect(listening.getsockname()[:2], KEY, 1, timeout_s=0.2)


def test_a_deadline_ends_what_waits_for_the_connection_and_nothing_else() -> None:
    one, other = socket.socketpair()
    with one, other:
        with deadline(one, 60):
            other.send(b"in time")
            assert one.recv(100) == b"in time"
        with deadline(one, 0.1):
            assert one.recv(100) == b""
