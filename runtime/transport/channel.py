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

Ranks on GPUs have better memory than the host's (``gpu_memory``), once a reader has seen there what a sender wrote on
trial. They try one kind after the other; before a trial has gone well, and where none does, messages go through memory
of the host, and each waits for the GPU.

The slots of a wire are used again and again, the same few, so that in the long run nothing is allocated and nothing but
headers is sent. How many there are is how many messages of the wire were ever kept at once: those that predictors look
at, and those under way. The board is a byte for each slot, in shared memory too: so a reader gives slots back without a
message. A send never waits: where the socket is full, since the reader has long had something else to do, a thread goes
on sending.
"""

from __future__ import annotations

import logging
import socket
import struct
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from runtime.transport.header import HEADER_BYTES, Header, describe, header_bytes, read_header
from runtime.transport.ipc import DeviceMemory
from runtime.transport.layout import Layout
from runtime.transport.mailbox import PARAMETER_CONTEXT, MessageKey
from runtime.transport.memory import Memory, Slot
from runtime.transport.packets import PacketSocket, close_files
from runtime.transport.payload import NoSlot, Payload
from runtime.transport.shared_memory import HostMemory
from runtime.transport.slots import BOARD_SLOTS, Board, OwnSlots
from runtime.transport.staged import StagedMemory

_NO_SLOT = -1  # of a message without bytes
_WHERE = struct.Struct("=2q")  # which of the sender's memories it lies in, and the slot's number
_PACKET_BYTES = HEADER_BYTES + _WHERE.size  # at least
_OWN_TABLE = -(1 << 62)  # of messages between channels
_PROBE = MessageKey(_OWN_TABLE, 0, 0, 0)  # by which a sender tries whether the reader sees what it writes
_VERDICT = MessageKey(_OWN_TABLE, 1, 0, 0)  # the answer: why not, in words, or nothing
_NO_GPU = "it has no GPU"
_PROBE_BYTES = 1 << 20
_PROBE_S = 10.0

_log = logging.getLogger("runtime")


class Channel:
    """One rank's end: what it sends to the other rank, and what it receives from it.

    sent, received: how many messages.

    Args:
        line: its end of a line, see ``new_line``; closed with the channel.
        peer: the other rank.
        device: this rank's.
        said: what channels of its rank have warned of, and it adds to: of peers of which the same holds, once.
    """

    def __init__(self, line: socket.socket, peer: int, device: torch.device, said: set[str]) -> None:
        self.peer = peer
        self._said = said
        self.sent = 0
        self.received = 0
        self._packets = PacketSocket(line, f"packets to rank {peer}")
        self._slots = OwnSlots()
        self._device = device
        self._memories: list[Memory] = [HostMemory(), *gpu_memory(device)]
        self._chosen = 0  # which of them the tensors of this rank's device are sent through
        self._tried = 0  # which of them was tried last
        self._refused: list[str] = []  # which of them cannot be used, and why
        # number -> table, memory and slot, and what gives it back
        self._theirs: dict[int, tuple[int, Memory, Slot, Callable[[], None]]] = {}
        self._board: Board | None = None  # on which this rank clears marks
        self._place, self._number = 0, _NO_SLOT  # of the packet whose header was read last
        self._description = b""
        self._files: list[int] = []
        self._packets.send(b"", [self._slots.board.file])
        self._try_next()

    def fileno(self) -> int:
        """The descriptor to poll for packets."""
        return self._packets.fileno()

    # ---- send

    @property
    def slot_bytes(self) -> int:
        """Of the slots that it has made for what it sends."""
        return self._slots.size_bytes

    def send(self, plan_hash: int, key: MessageKey, described: bytes, layout: Layout, tensor: torch.Tensor) -> None:
        """Send a message; returns at once.

        Args:
            plan_hash, key, described: for its header.
            layout: of what is sent.
            tensor: what to send, which fills its memory; copied before this returns, or in order on its GPU.

        Raises:
            OSError: the other rank has ended.
            MemoryError, RuntimeError: there is no memory for it.
        """
        header = header_bytes(plan_hash, self.sent, key, described)
        self.sent += 1
        place = self._chosen
        # parameters would fill the driver's GPU, whose memory is never given back
        if place and (tensor.device != self._device or key.context == PARAMETER_CONTEXT):
            place = 0
        try:
            self._put(header, key, place, layout, tensor)
        except (MemoryError, RuntimeError) as error:
            if not place:
                raise
            self._refuse(place, str(error))
            self._chosen = 0
            self._tell()
            self._put(header, key, 0, layout, tensor)

    def _put(self, header: bytes, key: MessageKey, place: int, layout: Layout, tensor: torch.Tensor) -> None:
        number, description = _NO_SLOT, b""
        files: list[int] = []
        if layout.size_bytes:
            memory = self._memories[place]
            try:
                number, slot, description, files = self._slots.take(key.table, key.wire, memory, layout.size_bytes)
            except OSError as error:
                raise MemoryError(f"no memory to share: {error}") from error
            slot.write(tensor, layout)
        self._packets.send(header + _WHERE.pack(place, number) + description, files)

    # ---- receive

    def next_header(self) -> Header | None:
        """The header of the next message, of which ``payload`` then gives the tensor; None: there is none yet.

        Raises:
            EOFError, OSError: the other rank has ended.
            ValueError: it is no packet.
        """
        while (packet := self._packets.receive()) is not None:
            content, self._files = packet
            if self._board is None:
                files, self._files = self._files, []
                self._board = Board(files)
                continue
            if len(content) < _PACKET_BYTES:
                raise ValueError(f"it has {len(content)} bytes")
            header = read_header(content)
            self._place, self._number = _WHERE.unpack_from(content, HEADER_BYTES)
            self._description = content[_PACKET_BYTES:]
            if header.key.table != _OWN_TABLE:
                return header
            if header.key == _PROBE:
                self._answer_probe()
            else:
                self._take_verdict(self._description.decode())
        return None

    def payload(self, key: MessageKey, layout: Layout) -> Payload:
        """The payload of a packet whose header has been checked.

        Args:
            key: of the message.
            layout: of the message.

        Raises:
            ValueError: its slot does not exist.
            MemoryError, RuntimeError: its memory cannot be shared.
        """
        self.received += 1
        if not layout.size_bytes:
            return Payload(layout, NoSlot(), lambda: None)
        return self._payload(key.table, layout)

    def _payload(self, table: int, layout: Layout) -> Payload:
        number = self._number
        if self._description:
            self._open_slot(table)
        theirs = self._theirs.get(number)
        if theirs is None or layout.size_bytes > theirs[2].size_bytes:
            raise ValueError(f"its slot {number} is not there, or too small for {layout.size_bytes} bytes")
        return Payload(layout, theirs[2], theirs[3])

    def _open_slot(self, table: int) -> None:
        """Note the slot that a packet describes."""
        if not 0 <= self._place < len(self._memories):
            raise ValueError(f"it lies in memory {self._place}, which this rank has not")
        memory = self._memories[self._place]
        files, self._files = self._files, []
        assert self._board is not None
        returned = partial(self._board.clear, self._number)
        try:
            self._theirs[self._number] = table, memory, memory.open(self._description, files), returned
        except OSError as error:
            raise MemoryError(f"shared memory cannot be opened: {error}") from error

    def drop(self, key: MessageKey, size_bytes: int) -> None:
        """Give back the slot of a packet whose message nobody wants any more; its header has been checked.

        Args:
            key: of the message.
            size_bytes: of it.

        Raises:
            ValueError, MemoryError, RuntimeError: as ``payload``.
        """
        self.received += 1
        if not size_bytes:
            return
        if self._description and 0 <= self._place < len(self._memories) and self._memories[self._place].keeps:
            self._open_slot(key.table)  # it may be used again for another wire, without a description
        files, self._files = self._files, []
        close_files(files)
        if self._board is None or not 0 <= self._number < BOARD_SLOTS:
            raise ValueError(f"its slot {self._number} is not there")
        self._board.clear(self._number)

    # ---- which memory the other rank sees

    def _try_next(self) -> None:
        """Try the next kind of memory, if there is one; the answer comes as a packet."""
        if self._tried + 1 == len(self._memories):
            self._tell()
            return
        self._tried += 1
        try:
            pattern = trial_pattern(self._device)
            header = header_bytes(0, 0, _PROBE, describe(pattern))
            self._put(header, _PROBE, self._tried, Layout.of(pattern), pattern)
        except (MemoryError, RuntimeError) as error:
            self._take_verdict(str(error))

    def _answer_probe(self) -> None:
        verdict = _NO_GPU
        if len(self._memories) > 1:
            try:
                pattern = trial_pattern(self._device)
                payload = self._payload(_OWN_TABLE, Layout.of(pattern))
                until = time.monotonic() + _PROBE_S
                while not payload.is_there() and time.monotonic() < until:
                    time.sleep(1e-4)
                if not payload.is_there():
                    raise RuntimeError(f"what was written there does not arrive within {_PROBE_S:g} s")
                tensor, there = payload.tensor()
                if there is not None:
                    torch.cuda.current_stream(self._device).wait_event(there)
                same = torch.equal(tensor, pattern)
                verdict = "" if same else "it does not see there what was written"
            except (MemoryError, RuntimeError, ValueError) as error:
                verdict = str(error)[:500]
        header = header_bytes(0, 0, _VERDICT, describe(None))
        self._packets.send(header + _WHERE.pack(0, _NO_SLOT) + verdict.encode(), [])

    def _take_verdict(self, verdict: str) -> None:
        self._slots.forget([_OWN_TABLE])
        if not verdict:
            self._chosen = self._tried
            self._tell()
        elif verdict != _NO_GPU:
            self._refuse(self._tried, verdict)
            self._try_next()

    def _refuse(self, place: int, why: str) -> None:
        self._refused.append(f"{self._memories[place].name}: {why}")

    def _tell(self) -> None:
        """Say which way messages go, if it is not the best one, and why."""
        if self._refused:
            refused, chosen = ", nor ".join(self._refused), self._memories[self._chosen].name
            text = f"cannot use {refused}. What is sent to it goes through {chosen}"
            _log.log(logging.INFO if text in self._said else logging.WARNING, "rank %d %s", self.peer, text)
            self._said.add(text)

    # ---- end

    def forget(self, tables: Sequence[int]) -> None:
        """Let go of the slots of tables, of which no more messages will be sent or received."""
        self._slots.forget(tables)
        self._theirs = {
            number: entry for number, entry in self._theirs.items() if entry[0] not in tables or entry[1].keeps
        }

    def close(self) -> None:
        """End it; the other rank is told by that, if it still listens."""
        self._packets.close()
        close_files(self._files)
        self._files = []
        for memory in self._memories:
            memory.close()
        self._theirs.clear()
        self._slots.close()
        self._memories.clear()
        if self._board is not None:
            self._board.close()


def gpu_memory(device: torch.device) -> list[Memory]:
    """What a rank on that device shares besides memory of the host, if it is a GPU, the best first."""
    return [DeviceMemory(device), StagedMemory(device)] if device.type == "cuda" else []


def trial_pattern(device: torch.device) -> torch.Tensor:
    """What is sent to try out a way: bytes."""
    return (torch.arange(_PROBE_BYTES, device=device) % 251).to(torch.uint8)
