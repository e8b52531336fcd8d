"""Authenticated TCP connections between the driver and what torchrun has started on other machines.

Both ends prove that they know the driver's key before anything else is exchanged, by the challenge of
multiprocessing.connection (its ``authkey``): each answers the other's random bytes with their HMAC under the key.

    connecting side                       accepting side (driver)
 1  answer_challenge    <- random bytes   deliver_challenge
 2                      HMAC ->           verified, else closed
 3  deliver_challenge   random bytes ->   answer_challenge
 4  verified, else closed   <- HMAC

The key itself is never sent, and nothing is unpickled before both steps are done. multiprocessing's own Listener and
Client are not used because neither has a deadline: a Listener runs the challenge in the thread that accepts, where one
peer that connects and stays silent would keep out all others.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge

_GONE_S = 20  # after which a machine that does not answer at all counts as gone


def accept_handshake(line: socket.socket, key: bytes) -> Connection:
    """Authenticate a peer that has connected, on the accepting side.

    Args:
        line: the accepted socket. It stays open and stays the caller's, who sets the deadline.
        key: the driver's key.

    Returns:
        A connection over the same socket.

    Raises:
        ConnectionError: the peer does not know the key, or closed the connection.
    """
    return _authenticated(line, key, (deliver_challenge, answer_challenge))


def connect(address: tuple[str, int], key: bytes, timeout_s: float) -> Connection:
    """Connect to the driver and authenticate, on the connecting side.

    Args:
        address: host and port of the driver.
        key: the driver's key.
        timeout_s: deadline for the connection, and again for the handshake.

    Raises:
        OSError: the driver cannot be reached, does not know the key, or is too slow.
    """
    with socket.create_connection(address, timeout=timeout_s) as line:
        set_up(line)
        with deadline(line, timeout_s):
            return _authenticated(line, key, (answer_challenge, deliver_challenge))


def _authenticated(line: socket.socket, key: bytes, steps: Sequence[Callable[[Connection, bytes], None]]) -> Connection:
    connection = Connection(os.dup(line.fileno()))
    try:
        for step in steps:
            step(connection, key)
    except (OSError, EOFError, AuthenticationError, AssertionError) as error:  # the last: Python 3.11, on no challenge
        connection.close()
        raise ConnectionError(f"the other end of the connection did not prove that it knows the key: {error}") from None
    except BaseException:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def deadline(line: socket.socket, timeout_s: float) -> Iterator[None]:
    """Shut the connection down where the block has not ended in time; whoever reads or writes it then fails."""
    timer = threading.Timer(timeout_s, shut_down, (line,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def shut_down(line: socket.socket) -> None:
    """End a connection for both sides, also where other threads or processes have the same socket open."""
    with contextlib.suppress(OSError):
        line.shutdown(socket.SHUT_RDWR)


def set_up(line: socket.socket) -> None:
    """Make a TCP connection send small messages at once, and break where the other machine no longer answers."""
    line.settimeout(None)
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _GONE_S // 2)
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _GONE_S // 4)
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2)
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _GONE_S * 1000)
