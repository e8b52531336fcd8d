"""The handshake of a connection: both ends prove that they know a key, and which seat it is for, before all else.

    connecting side                                        accepting side
 1                             <- greeting, challenge      random bytes, anew for every connection
 2  seat, challenge, proof ->
 3                             <- proof                    or that the key is wrong, or the seat not free, and closed
 4  closed where the proof is not right

A proof is the HMAC under the key of what it says, the address that was connected to, the seat and both challenges. So
none can be used again, on another connection, by the other side, for another seat, or at another address. The key is
never sent. All that is read before a proof has 68 bytes, and nothing of it is looked at before the proof is right.
"""

from __future__ import annotations

import contextlib
import hmac
import secrets
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator

KEY_BYTES = 32
_GREETING = b"diffusion-partitioner handshake 1\n"
_RANDOM_BYTES = 32
_SEAT = struct.Struct("!I")
_GONE_S = 20  # after which a machine that does not answer at all counts as gone

_WRONG_KEY = bytes(KEY_BYTES)  # the answer to a proof that is not right

HostAndPort = tuple[str, int]  # for TCP; of a Unix socket that lies in no folder, its name, see ``local_name``, and 0


class NotAdmitted(ConnectionError):
    """The accepting side has answered that it does not let this one in; to try again would not help."""


def accept_handshake(line: socket.socket, key: bytes, address: HostAndPort, admit: Callable[[int], bool]) -> None:
    """Authenticate a peer that has connected, on the accepting side. The caller sets the deadline.

    Args:
        line: the accepted socket.
        key: that both sides know.
        address: where it was accepted, as the other side was told.
        admit: takes the seat that the peer has proved to come for; False where it cannot have it.

    Raises:
        OSError: the peer does not know the key, is not admitted, or closed the connection.
    """
    ours = secrets.token_bytes(_RANDOM_BYTES)
    line.sendall(_GREETING + ours)
    answer = _read(line, _SEAT.size + _RANDOM_BYTES + KEY_BYTES)
    seat, theirs, proof = answer[: _SEAT.size], answer[_SEAT.size : -KEY_BYTES], answer[-KEY_BYTES:]
    said = address, seat, ours, theirs
    if not hmac.compare_digest(proof, _proof(key, b"connecting", *said)):
        line.sendall(_WRONG_KEY)
        raise ConnectionError(_UNPROVED)
    if not admit(*_SEAT.unpack(seat)):
        line.sendall(_proof(key, b"refusing", *said))
        raise ConnectionError("its seat is not free")
    line.sendall(_proof(key, b"accepting", *said))


def connect(address: HostAndPort, key: bytes, seat: int, timeout_s: float) -> socket.socket:
    """Connect and authenticate, on the connecting side.

    Args:
        address: host and port of the other side.
        key: that both sides know.
        seat: which one to take there.
        timeout_s: deadline for the connection, and again for the handshake.

    Raises:
        NotAdmitted: by the other side's answer the key is not the right one, or the seat not free.
        OSError: the other side cannot be reached, does not know the key, or is too slow.
    """
    line = _connected(address, timeout_s)
    try:
        set_up(line)
        with deadline(line, timeout_s):
            _prove(line, key, address, seat)
    except BaseException:
        line.close()
        raise
    return line


def _prove(line: socket.socket, key: bytes, address: HostAndPort, seat: int) -> None:
    greeting = _read(line, len(_GREETING) + _RANDOM_BYTES)
    if not greeting.startswith(_GREETING):
        raise ConnectionError(_UNPROVED)
    ours = secrets.token_bytes(_RANDOM_BYTES)
    said = address, _SEAT.pack(seat), greeting[len(_GREETING) :], ours
    line.sendall(_SEAT.pack(seat) + ours + _proof(key, b"connecting", *said))
    answer = _read(line, KEY_BYTES)
    if answer == _WRONG_KEY:
        raise NotAdmitted("it has another key")
    if hmac.compare_digest(answer, _proof(key, b"refusing", *said)):
        raise NotAdmitted(f"{seat} is taken there, or not expected")
    if not hmac.compare_digest(answer, _proof(key, b"accepting", *said)):
        raise ConnectionError(_UNPROVED)


_UNPROVED = "the other end of the connection did not prove that it knows the key"


def _proof(key: bytes, what: bytes, address: HostAndPort, seat: bytes, challenge: bytes, answer: bytes) -> bytes:
    # what differs in length is in front and ends with a zero byte, so that no two are spelled alike
    named = what + b"\0" + f"{address[0]} {address[1]}".encode() + b"\0"
    return hmac.digest(key, named + seat + challenge + answer, "sha256")


def _read(line: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size:
        more = line.recv(size - len(got))
        if not more:
            raise ConnectionError(f"{_UNPROVED}: it closed it")
        got += more
    return got


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


def local_name() -> str:
    """A new name for a Unix socket that lies in no folder and ends with its process; nobody can have it already."""
    return f"@diffusion-partitioner-{secrets.token_hex(16)}"


def in_no_folder(name: str) -> str:
    """What the system knows the Unix socket by whose name ``local_name`` has made."""
    return "\0" + name.removeprefix("@")


def _connected(address: HostAndPort, timeout_s: float) -> socket.socket:
    if not address[0].startswith("@"):
        return socket.create_connection(address, timeout=timeout_s)
    line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        line.settimeout(timeout_s)
        line.connect(in_no_folder(address[0]))
    except BaseException:
        line.close()
        raise
    return line


def set_up(line: socket.socket) -> None:
    """Make a connection wait without end; one of TCP send at once, and break where nothing answers while it is idle."""
    line.settimeout(None)
    if line.family == socket.AF_UNIX:
        return
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _GONE_S // 2)
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _GONE_S // 4)
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2)


def break_where_unread(line: socket.socket) -> None:
    """Have a connection break, too, where what was sent is not taken for some time; for ends that always read."""
    if sys.platform == "linux":
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _GONE_S * 1000)
