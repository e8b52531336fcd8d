"""Channel: one rank's way to another one of the same machine, and back.

What a message is travels as a packet of a socket, which also wakes its reader; its payload lies in a slot of memory
that both share (runtime.transport.memory). A packet is a header (runtime.transport.header) and the number of the slot;
where the slot is new, its description follows, and the descriptors of its files go with it.

    sender                                              reader
    takes a free slot, or makes one                             :
    marks it on the board, writes the payload                   :
    sends the packet                ------------->      receives it: the message is there
        :                                               uses the payload where it lies
        :                                               clears the mark when nothing uses it any more

The slots of a wire are used again and again, the same few, so that in the long run nothing is allocated and nothing but
headers is sent. How many there are is how many messages of the wire were ever kept at once: those that predictors look
at, and those under way. The board is a byte for each slot, in shared memory too: so a reader gives slots back without a
message. A send never waits: where the socket is full, since the reader has long had something else to do, a thread goes
on sending.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import os
import select
import socket
import struct
import threading
from collections import deque
from collections.abc import Sequence
from functools import partial

import torch

from runtime.transport.header import DTYPES, HEADER_WORDS, SEQUENCE, shape_and_strides
from runtime.transport.mailbox import MessageKey
from runtime.transport.memory import Layout, Memory, Slot
from runtime.transport.shared_memory import HostMemory, Region, new_file

BOARD_SLOTS = 1 << 16
_FREE, _TAKEN = 0, 1
_NO_SLOT = -1  # of a message without bytes
_WORDS = struct.Struct(f"={HEADER_WORDS + 1}q")
_PACKET_BYTES = _WORDS.size + 1024
_FULL = {errno.EAGAIN, errno.ENOBUFS, errno.ETOOMANYREFS}  # too many packets, or descriptors of files, are under way


def new_line() -> tuple[socket.socket, socket.socket]:
    """The two ends of what a channel sends its packets through."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def new_lines(ranks: int) -> list[dict[int, socket.socket]]:
    """A line between every two ranks: by rank, other rank -> its own end."""
    ends: list[dict[int, socket.socket]] = [{} for _ in range(ranks)]
    for rank in range(ranks):
        for other in range(rank + 1, ranks):
            ends[rank][other], ends[other][rank] = new_line()
    return ends


class Channel:
    """One rank's end: what it sends to the other rank, and what it receives from it.

    sent, received: how many packets.

    Args:
        line: its end of a line, see ``new_line``; closed with the channel.
        peer: the other rank.
    """

    def __init__(self, line: socket.socket, peer: int) -> None:
        self.peer = peer
        self.sent = 0
        self.received = 0
        self._packets = _PacketSocket(line, f"packets to rank {peer}")
        self._memory: Memory = HostMemory()
        self._slots = _OwnSlots(self._memory)
        self._theirs: dict[int, tuple[int, Slot]] = {}  # number -> table and slot
        self._board: _Board | None = None  # on which this rank clears marks
        self._number, self._description = _NO_SLOT, b""  # of the packet whose header was read last
        self._files: list[int] = []
        self._packets.send(b"", [self._slots.board.file()])

    def fileno(self) -> int:
        """The descriptor to poll for packets."""
        return self._packets.fileno()

    def send(self, header: list[int], key: MessageKey, tensor: torch.Tensor) -> None:
        """Send a message; returns at once.

        Args:
            header: its words; that of the sequence is filled in here.
            key: of the message.
            tensor: what to send, which fills its memory; copied before this returns, or in order on its device.

        Raises:
            OSError: the other rank has ended.
        """
        header[SEQUENCE] = self.sent
        self.sent += 1
        number, description = _NO_SLOT, b""
        files: list[int] = []
        if tensor.nbytes:
            number, slot, description, files = self._slots.take(key.table, key.wire, tensor.nbytes)
            slot.write(tensor)
        self._packets.send(_WORDS.pack(*header, number) + description, files)

    def next_header(self) -> tuple[int, ...] | None:
        """The words of the next packet, of which ``payload`` then gives the tensor; None: there is none yet.

        Raises:
            EOFError, OSError: the other rank has ended.
            ValueError: it is no packet.
        """
        packet = self._packets.receive()
        if packet is None:
            return None
        if self._board is None:
            self._board = _Board(packet[1])
            return self.next_header()
        self._description, self._files = packet[0][_WORDS.size :], packet[1]
        if len(packet[0]) < _WORDS.size:
            raise ValueError(f"it has {len(packet[0])} bytes")
        words = _WORDS.unpack_from(packet[0])
        self._number = words[-1]
        return words[:-1]

    def payload(self, words: Sequence[int], key: MessageKey) -> torch.Tensor:
        """The tensor of a packet whose header has been checked.

        Args:
            words: of the header.
            key: of the message.

        Raises:
            ValueError: its slot does not exist.
        """
        self.received += 1
        layout = Layout(getattr(torch, DTYPES[words[8]]), *shape_and_strides(words))
        number, size_bytes = self._number, words[9]
        if not size_bytes:
            return torch.empty_strided(layout.shape, layout.stride, dtype=layout.dtype)
        if self._description:
            files, self._files = self._files, []
            self._theirs[number] = key.table, self._memory.open(self._description, files)
        if number not in self._theirs or size_bytes > self._theirs[number][1].size_bytes:
            raise ValueError(f"its slot {number} is not there, or too small for {size_bytes} bytes")
        assert self._board is not None
        return self._theirs[number][1].lend(layout, partial(self._board.clear, number))

    def forget(self, tables: Sequence[int]) -> None:
        """Let go of the slots of tables, of which no more messages will be sent or received."""
        self._slots.forget(tables)
        self._theirs = {number: entry for number, entry in self._theirs.items() if entry[0] not in tables}

    def close(self) -> None:
        """End it; the other rank is told by that, if it still listens."""
        self._packets.close()
        _close(self._files)
        self._files = []
        self._theirs.clear()
        self._slots.forget_all()
        self._slots.board.close()
        if self._board is not None:
            self._board.close()


class _Board:
    """A byte for each slot of one sender: whether it is taken. files: one of it, closed here; none: a new board."""

    def __init__(self, files: Sequence[int] = ()) -> None:
        self._file = -1 if files else new_file(BOARD_SLOTS)
        region = Region(files[0] if files else os.dup(self._file), BOARD_SLOTS)
        self._marks = (ctypes.c_ubyte * BOARD_SLOTS).from_address(region.bytes.data_ptr())
        self._marks.region = region  # type: ignore[attr-defined] # lives as long as what refers to it

    def file(self) -> int:
        """The descriptor of a new board, which the caller closes."""
        return self._file

    def is_free(self, number: int) -> bool:
        return self._marks[number] == _FREE

    def mark(self, number: int) -> None:
        self._marks[number] = _TAKEN

    def clear(self, number: int) -> None:
        self._marks[number] = _FREE

    def close(self) -> None:
        """From now on marks are nobody's business."""
        self._marks = (ctypes.c_ubyte * BOARD_SLOTS)()


class _OwnSlots:
    """The slots that this rank has made, by table and wire."""

    def __init__(self, memory: Memory) -> None:
        self.board = _Board()
        self._memory = memory
        self._of_wire: dict[tuple[int, int], list[tuple[int, Slot]]] = {}
        self._count = 0
        self._numbers: deque[int] = deque()  # of slots that are forgotten

    def take(self, table: int, wire: int, size_bytes: int) -> tuple[int, Slot, bytes, list[int]]:
        """A slot that is free, and marked from now on: its number; where it is new, its description and files too."""
        slots = self._of_wire.setdefault((table, wire), [])
        for number, slot in slots:
            if self.board.is_free(number) and slot.size_bytes >= size_bytes:
                self.board.mark(number)
                return number, slot, b"", []
        number = self._new_number()
        made, description, files = self._memory.make(table, size_bytes)
        slots.append((number, made))
        self.board.mark(number)
        return number, made, description, files

    def _new_number(self) -> int:
        for _ in range(len(self._numbers)):
            number = self._numbers.popleft()
            if self.board.is_free(number):
                return number
            self._numbers.append(number)  # its last message is still in use
        if self._count == BOARD_SLOTS:
            raise MemoryError(f"{BOARD_SLOTS} messages to one rank are in use at once")
        self._count += 1
        return self._count - 1

    def forget(self, tables: Sequence[int]) -> None:
        for wire in [wire for wire in self._of_wire if wire[0] in tables]:
            self._numbers.extend(number for number, _ in self._of_wire.pop(wire))
        for table in tables:
            self._memory.forget(table)

    def forget_all(self) -> None:
        self.forget(list({table for table, _ in self._of_wire}))


class _PacketSocket:
    """A socket of packets that never makes its sender wait. name: of the thread that sends when it is full."""

    def __init__(self, line: socket.socket, name: str) -> None:
        line.setblocking(False)
        self._line = line
        self._name = name
        self._lock = threading.Lock()
        self._late: deque[tuple[bytes, list[int]]] = deque()
        self._thread: threading.Thread | None = None

    def fileno(self) -> int:
        return self._line.fileno()

    def send(self, packet: bytes, files: list[int]) -> None:
        with self._lock:
            if self._late or not self._try(packet, files):
                self._late.append((packet, files))
                if self._thread is None:
                    self._thread = threading.Thread(target=self._send_late, name=self._name, daemon=True)
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
            _close(files)
            raise
        _close(files)
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
            packet, ancillary, flags, _ = self._line.recvmsg(_PACKET_BYTES, socket.CMSG_SPACE(4))
        except BlockingIOError:
            return None
        files = array.array("i")
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                files.frombytes(data[: len(data) - len(data) % files.itemsize])
        if not packet and not files:
            raise EOFError("its connection has closed")
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            _close(files)
            raise ValueError("it is too long")
        return packet, list(files)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._line.shutdown(socket.SHUT_RDWR)
        thread = self._thread
        if thread is not None:
            thread.join(timeout=2.0)
        with self._lock:
            for _, files in self._late:
                _close(files)
            self._late.clear()
        self._line.close()


def _close(files: Sequence[int]) -> None:
    for file in files:
        os.close(file)
