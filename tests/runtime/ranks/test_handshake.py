"""The handshake: both ends must know the key, in time."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from runtime.ranks.handshake import accept_handshake, connect, deadline, set_up

KEY = bytes(range(32))


@contextmanager
def accepting(key: bytes) -> Iterator[tuple[tuple[str, int], list[object]]]:
    """An address where one connection is accepted, and what came of it: a message or the error."""
    outcome: list[object] = []

    def accept() -> None:
        line, _ = listening.accept()
        with line:
            set_up(line)
            try:
                with accept_handshake(line, key) as connection:
                    outcome.append(connection.recv())
            except OSError as error:
                outcome.append(error)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=accept)
        thread.start()
        yield listening.getsockname()[:2], outcome
        thread.join(timeout=60)


def test_both_ends_that_know_the_key_are_connected() -> None:
    with accepting(KEY) as (address, outcome), connect(address, KEY, timeout_s=60) as connection:
        connection.send({"any": "message"})
    assert outcome == [{"any": "message"}]


def test_a_connecting_end_without_the_key_is_refused() -> None:
    with accepting(KEY) as (address, outcome), pytest.raises(ConnectionError, match="did not prove"):
        connect(address, bytes(32), timeout_s=60)
    assert isinstance(outcome[0], ConnectionError)


def test_an_accepting_end_without_the_key_is_refused() -> None:
    """It lets anybody in, whatever the answer to its challenge; then it must answer one itself."""

    def accept() -> None:
        line, _ = listening.accept()
        with line:
            for message in (b"#CHALLENGE#" + bytes(20), b"#WELCOME#", bytes(16)):
                line.sendall(len(message).to_bytes(4, "big") + message)
            while line.recv(100):
                pass

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=accept)
        thread.start()
        with pytest.raises(ConnectionError, match="did not prove"):
            connect(listening.getsockname()[:2], KEY, timeout_s=60)
        thread.join(timeout=60)


def test_a_silent_accepting_end_is_given_up_at_the_deadline() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,  # the system accepts, nobody answers
        pytest.raises(ConnectionError),
    ):
        connect(listening.getsockname()[:2], KEY, timeout_s=0.2)


def test_a_deadline_ends_what_waits_for_the_connection_and_nothing_else() -> None:
    one, other = socket.socketpair()
    with one, other:
        with deadline(one, 60):
            other.send(b"in time")
            assert one.recv(100) == b"in time"
        with deadline(one, 0.1):
            assert one.recv(100) == b""
