"""OwnSlots: the slots that a rank has made for what it sends to one other; Board: which of them are taken."""

from __future__ import annotations

import ctypes
import os
from collections import deque
from collections.abc import Sequence

from runtime.transport.memory import Memory, Slot
from runtime.transport.shared_memory import HostRegion, new_file

BOARD_SLOTS = 1 << 16
_FREE, _TAKEN = 0, 1
_SMALL = 4096  # bytes; a slot of up to that is used again for any smaller message


class Board:
    """A byte for each slot of one sender, in memory that both share: whether the slot is taken.

    Args:
        files: of a sender's board, its descriptor, closed here; none: a new board, with a descriptor ``file`` that its
            maker closes.
    """

    def __init__(self, files: Sequence[int] = ()) -> None:
        self.file = -1 if files else new_file(BOARD_SLOTS)
        region = HostRegion(files[0] if files else os.dup(self.file), BOARD_SLOTS)
        self._owner = os.getpid()
        self._marks = (ctypes.c_ubyte * BOARD_SLOTS).from_address(region.bytes.data_ptr())
        self._marks.region = region  # type: ignore[attr-defined] # lives as long as what refers to it

    def is_free(self, number: int) -> bool:
        """Whether nobody uses a slot."""
        return self._marks[number] == _FREE

    def mark(self, number: int) -> None:
        """The sender takes a slot."""
        self._marks[number] = _TAKEN

    def clear(self, number: int) -> None:
        """The reader gives it back; a process that was forked from the reader, and frees its copies, does not."""
        if os.getpid() == self._owner:
            self._marks[number] = _FREE

    def close(self) -> None:
        """From now on marks are nobody's business."""
        self._marks = (ctypes.c_ubyte * BOARD_SLOTS)()


class OwnSlots:
    """The slots that a rank has made for what it sends to one other rank."""

    def __init__(self) -> None:
        self.board = Board()
        self._of_wire: dict[tuple[int, int, Memory], list[tuple[int, Slot]]] = {}  # table, wire
        self._spare: dict[Memory, list[tuple[int, Slot]]] = {}  # of wires that are forgotten, to be used again
        self._count = 0
        self._numbers: deque[int] = deque()  # of slots that are gone

    @property
    def size_bytes(self) -> int:
        """Of all slots that it has."""
        held = (*self._of_wire.values(), *self._spare.values())
        return sum(slot.size_bytes for slots in held for _, slot in slots)

    def take(self, table: int, wire: int, memory: Memory, size_bytes: int) -> tuple[int, Slot, bytes, list[int]]:
        """A slot that is free, and marked from now on.

        Args:
            table, wire: whose message it is for.
            memory: where it lies.
            size_bytes: of the message.

        Returns:
            Its number, itself, and, where it is new, its description and files (see Memory.make).

        Raises:
            MemoryError, OSError, RuntimeError: there is no memory for another slot.
        """
        slots = self._of_wire.setdefault((table, wire, memory), [])
        description, files = b"", list[int]()
        for number, slot in slots:
            if self.board.is_free(number) and slot.size_bytes >= size_bytes and slot.is_free():
                break
        else:
            found = self._from_spare(memory, size_bytes)
            if found is None:
                number = self._new_number()
                slot, description, files = memory.make(table, size_bytes)
            else:
                number, slot = found
            slots.append((number, slot))
        self.board.mark(number)
        return number, slot, description, files

    def _from_spare(self, memory: Memory, size_bytes: int) -> tuple[int, Slot] | None:
        spare = self._spare.get(memory, [])
        for index, (number, slot) in enumerate(spare):
            fits = size_bytes <= slot.size_bytes <= max(2 * size_bytes, _SMALL)
            if fits and self.board.is_free(number) and slot.is_free():
                return spare.pop(index)
        return None

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
        """Nothing more will be sent of tables."""
        for wire in [wire for wire in self._of_wire if wire[0] in tables]:
            slots, memory = self._of_wire.pop(wire), wire[2]
            if memory.keeps:
                self._spare.setdefault(memory, []).extend(slots)
            else:
                self._numbers.extend(number for number, _ in slots)
                memory.forget(wire[0])

    def close(self) -> None:
        """Let go of all slots."""
        self._of_wire.clear()
        self._spare.clear()
        self.board.close()
