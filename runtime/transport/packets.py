"""PacketSocket: a Unix socket that carries packets and descriptors of files, and never makes its sender wait."""

from __future__ import annotations

import array
import contextlib
import errno
import os
import select
import socket
import threading
from collections import deque
from collections.abc import Sequence

from runtime.turns import EngineThread

LONGEST_PACKET = 2048  # bytes
_CUT_OFF = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)
_ONE_FILE = socket.CMSG_SPACE(4)
_FULL = {errno.EAGAIN, errno.ENOBUFS, errno.ETOOMANYREFS}  # too many packets, or descriptors of files, are under way


def new_line() -> tuple[socket.socket, socket.socket]:
    """The two ends of what a channel sends its packets through."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def new_lines(ranks: int) -> list[dict[int, socket.socket]]:
    """A line between every two ranks: by rank, other rank -> its own end."""
    ends: list[dict[int, socket.socket]] = [{} for _ in range(ranks)]
    try:
        for rank in range(ranks):
            for other in range(rank + 1, ranks):
                ends[rank][other], ends[other][rank] = new_line()
    except OSError:
        for lines in ends:
            for line in lines.values():
                line.close()
        raise
    return ends


class PacketSocket:
    """One end of a line.

    Args:
        line: see ``new_line``; closed with this.
        name: of the thread that sends when the socket is full.
    """

    def __init__(self, line: socket.socket, name: str) -> None:
        line.setblocking(False)
        self._line = line
        self._name = name
        self._lock = threading.Lock()
        self._late: deque[tuple[bytes, list[int]]] = deque()
        self._thread: threading.Thread | None = None

    def fileno(self) -> int:
        """The descriptor to poll for packets."""
        return self._line.fileno()

    def send(self, packet: bytes, files: list[int]) -> None:
        """Send a packet; returns at once. Where the socket is full, a thread goes on sending.

        Args:
            packet: at most LONGEST_PACKET long.
            files: descriptors that go with it; closed once they are sent.

        Raises:
            OSError: the other end has closed.
        """
        with self._lock:
            if self._late or not self._try(packet, files):
                self._late.append((packet, files))
                if self._thread is None:
                    self._thread = EngineThread(self._send_late, self._name)
                    self._thread.start()

    def _try(self, packet: bytes, files: list[int]) -> bool:
        """Send a packet now and close its files; False where there is no room for it."""
        try:
            if files:
                socket.send_fds(self._line, [packet], files)
            else:
                self._line.send(packet)
        except OSError as error:
            if error.errno in _FULL:
                return False
            close_files(files)
            raise
        close_files(files)
        return True

    def _send_late(self) -> None:
        room = select.poll()
        room.register(self._line, select.POLLOUT)
        while True:
            room.poll(1000)
            with self._lock:
                try:
                    while self._late and self._try(*self._late[0]):
                        self._late.popleft()
                except OSError:
                    self._late.clear()  # the other rank has ended, which is noticed by who receives
                if not self._late:
                    self._thread = None
                    return

    def receive(self) -> tuple[bytes, list[int]] | None:
        """A packet and its files, which the caller closes; None: there is none. Raises EOFError at the end."""
        try:
            packet, ancillary, flags, _ = self._line.recvmsg(LONGEST_PACKET, _ONE_FILE)
        except BlockingIOError:
            return None
        if not ancillary and packet and not flags & _CUT_OFF:
            return packet, []
        files = array.array("i")
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                files.frombytes(data[: len(data) - len(data) % files.itemsize])
        if not packet and not files:
            raise EOFError("its connection has closed")
        if flags & _CUT_OFF:
            close_files(files)
            if flags & socket.MSG_CTRUNC and not files:  # they have come, and there is no number for them
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            raise ValueError("it is too long")
        return packet, list(files)

    def close(self) -> None:
        """Close this end; the other one is told by that."""
        with contextlib.suppress(OSError):
            self._line.shutdown(socket.SHUT_RDWR)
        thread = self._thread
        if thread is not None:
            thread.join(timeout=2.0)
        with self._lock:
            for _, files in self._late:
                close_files(files)
            self._late.clear()
        self._line.close()


def close_files(files: Sequence[int]) -> None:
    """Close descriptors."""
    for file in files:
        os.close(file)
