"""SocketChannel: one rank's way to another, and back, over a connected stream socket."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import deque
from typing import Protocol

from runtime.transport.handshake import shut_down
from runtime.transport.header import HEADER_BYTES, Header, header_bytes, read_header
from runtime.transport.mailbox import MessageKey
from runtime.turns import EngineThread

_PAUSE_S, _LONGEST_PAUSE_S = 5e-5, 1e-3  # between the first two looks at whether a payload is there, and later ones


class Staged(Protocol):
    """A payload that a GPU may have yet to write; any thread asks."""

    def is_there(self) -> bool:
        """Whether it is whole by now."""

    def sent(self) -> None:
        """One channel needs it no more."""


class SocketChannel:
    """Messages to one peer, which are numbered, and those from it.

    A send never waits for the reader: what does not go into the system's buffer at once is kept, and a thread writes
    it.

    sent, received: how many messages.

    Args:
        line: connected to the peer; closed with this.
        name: of the thread.
    """

    def __init__(self, line: socket.socket, name: str) -> None:
        self.sent = 0
        self.received = 0
        self._line = line
        self._changed = threading.Condition()
        # the first is being written, unless nobody does
        self._late: deque[tuple[list[memoryview], Staged | None]] = deque()
        self._broken: OSError | None = None
        self._name = name
        self._thread: threading.Thread | None = None

    def send(
        self,
        plan_hash: int,
        key: MessageKey,
        described: bytes,
        payload: memoryview | None,
        staged: Staged | None = None,
    ) -> None:
        """Send a message; returns at once.

        Args:
            plan_hash, key, described: for its header.
            payload: its bytes, which must not change until they are sent; None where there are none.
            staged: says whether they are there, and is told when they are sent; None: they are there.

        Raises:
            OSError: the connection is known to be broken.
        """
        with self._changed:
            if self._broken is not None:
                raise self._broken
            header = header_bytes(plan_hash, self.sent, key, described)
            self.sent += 1
            parts = [memoryview(header), *([] if payload is None else [payload])]
            if not self._late and (staged is None or staged.is_there()):
                _write(self._line, parts, socket.MSG_DONTWAIT)
            if not parts:
                if staged is not None:
                    staged.sent()
                return
            self._late.append((parts, staged))
            if self._thread is None:
                self._thread = EngineThread(self._send_late, self._name)
                self._thread.start()
            self._changed.notify()

    def _send_late(self) -> None:
        pause_s = _PAUSE_S
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._late or self._broken is not None)
                    if self._broken is not None:
                        return
                    parts, staged = self._late[0]
                    if staged is not None and not staged.is_there():
                        self._changed.wait(pause_s)
                        pause_s = min(1.5 * pause_s, _LONGEST_PAUSE_S)
                        continue
                pause_s = _PAUSE_S
                _write(self._line, parts)
                with self._changed:
                    if self._late:  # unless it broke
                        self._late.popleft()
                if staged is not None:
                    staged.sent()
        except OSError as error:
            self._end(error)  # the peer has ended, which is noticed by who receives

    def _end(self, error: OSError) -> None:
        with self._changed:
            self._broken = self._broken or error
            self._late.clear()
            self._changed.notify_all()

    def header(self) -> Header:
        """Wait for the next message; its header, after which ``read`` gives its payload.

        Raises:
            OSError, EOFError: the connection has ended.
        """
        content = bytearray(HEADER_BYTES)
        self.read(memoryview(content))
        return read_header(content)

    def read(self, room: memoryview) -> None:
        """Wait for as many bytes as there is room for; raises as ``header`` does."""
        while room:
            count = self._line.recv_into(room, 0, socket.MSG_WAITALL)
            if not count:
                raise EOFError("its connection has closed")
            room = room[count:]

    @property
    def kept(self) -> int:
        """How many messages the system's buffer has not taken yet."""
        return len(self._late)

    def shut_down(self) -> None:
        """End the connection: whoever waits for it here, or at the other end, is told."""
        shut_down(self._line)
        self._end(OSError("the connection is closed"))

    def close(self) -> None:
        """Give everything back, after ``shut_down``."""
        if self._thread is not None:
            self._thread.join(timeout=2.0)
        with contextlib.suppress(OSError):
            self._line.close()


def _write(line: socket.socket, parts: list[memoryview], flags: int = 0) -> None:
    """Send the parts and take what is sent out of the list; with MSG_DONTWAIT only as far as there is room now."""
    with contextlib.suppress(BlockingIOError):
        while parts:
            count = line.sendmsg(parts, (), flags)
            while parts and count >= len(parts[0]):
                count -= len(parts.pop(0))
            if count:
                parts[0] = parts[0][count:]
