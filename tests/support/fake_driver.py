"""FakeDriver: the calls of CUDA's driver that staged messages need, on the GPUs of FakeCuda.

Two mailboxes of one process stand for two processes: each has mapped the memory that they share for itself, so what
lies there is known by its file. As FakeCuda does, this finds what is out of order, whatever the timing. Errors are:

- a copy to or from memory that is not page-locked, or that does not come after the last write and all reads;
- a host that clears a word to which a stream may still write;
- a thread of a socket that sends what a stream may yet write, or reads into what a stream may still read;
- memory that is unlocked before all copies are known to be done.

A host that sees that a word is set knows no more than that the first write since the word was cleared is done; one that
sees that a slot was given back knows what its reader knew then.
"""

from __future__ import annotations

import bisect
import contextlib
import ctypes
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest

from runtime.transport import cuda_driver, staged
from runtime.transport.slots import Board
from runtime.transport.socket_channel import SocketChannel, _write
from tests.support.fake_cuda import _PARTS, Clock, FakeCuda, FakeStream, fake_cuda

_read = SocketChannel.read
_GPU_KNOWS_AS = 1 << 60  # what is added to an address
Where = tuple[int, int]  # a file's number, and an offset there


@dataclass
class _Shared:
    """Who has used some shared bytes, as Block has it."""

    written: tuple[int, int] = (0, 0)
    reads: Clock = field(default_factory=Counter)


class FakeDriver:
    """Page-locked memory, copies and words.

    Attributes:
        refusal: what locking memory says; None: it can be locked.
        late: whether what streams write to words is not seen before ``settle``.
        garbles: whether what is copied to the host is something else there.
        has_words: whether streams can write words.
    """

    def __init__(self, cuda: FakeCuda) -> None:
        self.refusal: str | None = None
        self.late = False
        self.garbles = False
        self.has_words = True
        self._cuda = cuda
        self._locked: dict[int, tuple[int, Where]] = {}  # address -> size, and what lies there
        self._used: dict[int, Clock] = defaultdict(
            Counter
        )  # the same -> by which streams by that address, and until when
        self._shared: dict[Where, _Shared] = defaultdict(_Shared)
        self._words: dict[Where, list[Clock]] = defaultdict(list)  # those who have set it since it was cleared
        self._late: list[tuple[int, int, Where, Clock]] = []
        self._given_back: dict[Where, Clock] = {}
        self._landings: dict[int, Clock] = {}

    @property
    def locked_bytes(self) -> int:
        return sum(size for size, _ in self._locked.values())

    # ---- calls of the driver

    def lock(self, index: int, address: int, size_bytes: int) -> int:
        if self.refusal is not None:
            raise RuntimeError(self.refusal)
        self._locked[address] = size_bytes, _file_at(address)
        return address + _GPU_KNOWS_AS

    def unlock(self, index: int, address: int) -> None:
        del self._locked[address]
        for number, count in self._used.pop(address, Counter()).items():
            if self._cuda.host[number] < count:
                self._cuda.errors.append(f"memory is unlocked while stream {number} uses it")

    def copy(self, stream: FakeStream, target: int, source: int, size_bytes: int) -> None:
        with self._cuda._lock:
            self._queue(stream)
            for address, written in ((source, False), (target, True)):
                self._cuda._use(self._user_of(address, stream), stream, "a copy", written=written)
            ctypes.memmove(target, source, size_bytes)
        if self.garbles and self._where(target) is not None:
            ctypes.memset(target, 0xAA, size_bytes)

    def write_word(self, stream: FakeStream, target: int, value: int) -> None:
        if not self.has_words:
            raise RuntimeError("cuStreamWriteValue32_v2: operation not supported")
        self._queue(stream)
        address = target - _GPU_KNOWS_AS
        where = self._where(address, stream)
        assert where is not None, "the GPU knows no such address"
        self._late.append((address, value, where, Counter(stream.clock)))
        if not self.late:
            self.settle()

    def settle(self, most: int | None = None) -> None:
        """Have everybody see what streams have written to words. most: of the words written first, how many."""
        for _ in range(len(self._late) if most is None else min(most, len(self._late))):
            address, value, where, clock = self._late.pop(0)
            self._words[where].append(clock)
            ctypes.c_uint32.from_address(address).value = value

    def refuse_to_share(self, index: int, size_bytes: int) -> int:
        raise RuntimeError("no peer access")

    def _queue(self, stream: FakeStream) -> None:
        stream.clock |= self._cuda.host
        stream.clock[stream.cuda_stream] += 1

    def _user_of(self, address: int, stream: FakeStream) -> Any:
        where = self._where(address, stream)
        if where is not None:
            return self._shared[where]
        for _, data, block in list(_PARTS.values()):
            memory = data.untyped_storage()
            if memory.data_ptr() <= address < memory.data_ptr() + memory.nbytes():
                return block
        self._cuda.errors.append("a copy of memory that is not page-locked")
        return _Shared()

    def _where(self, address: int, user: FakeStream | None = None) -> Where | None:
        for begin, (size_bytes, (file, start)) in list(self._locked.items()):  # threads of sockets look, too
            if begin <= address < begin + size_bytes:
                if user is not None:
                    self._used[begin][user.cuda_stream] = user.clock[user.cuda_stream]
                return file, start + address - begin
        return None

    # ---- what hosts see

    def is_set(self, word: Any) -> bool:
        where = self._where(ctypes.addressof(word._here))
        found: bool = word._here.value == staged._THERE
        if found and where is not None and self._words[where]:
            self._cuda.host = self._cuda.host | self._words[where][0]
        return found

    def put(self, word: Any, value: int) -> None:
        address = ctypes.addressof(word._here)
        where = self._where(address)
        assert where is not None
        under_way = [clock for _, _, there, clock in self._late if there == where]
        if not all(clock <= self._cuda.host for clock in [*self._words[where], *under_way]):
            self._cuda.errors.append("a host clears a word to which a stream may still write")
        self._words[where] = []
        word._here.value = value

    def look_at(self, part: memoryview, *, written: bool) -> None:
        """A thread of a socket reads or writes some bytes of the host."""
        where = self._where(ctypes.addressof((ctypes.c_ubyte * len(part)).from_buffer(part))) if part else None
        if where is None:
            return
        shared, host = self._shared[where], self._cuda.host
        writer, count = shared.written
        if host[writer] < count:
            self._cuda.errors.append(f"a socket's thread does not wait for what stream {writer} writes")
        if written and any(host[reader] < read for reader, read in list(shared.reads.items())):
            self._cuda.errors.append("a socket's thread reads into what a stream reads")

    def send(self, line: Any, parts: list[memoryview], flags: int = 0) -> None:
        for part in parts[1:]:
            self.look_at(part, written=False)
        _write(line, parts, flags)

    def read(self, channel: SocketChannel, room: memoryview) -> None:
        self.look_at(room, written=True)
        _read(channel, room)

    def give_back(self, landing: Any) -> None:
        self._landings[id(landing)] = Counter(self._cuda.host)
        landing.taken = False

    def landing(self, staging: Any, size_bytes: int) -> Any:
        found = self._claim(staging, size_bytes)
        self._cuda.host = self._cuda.host | self._landings.get(id(found), Counter())
        return found

    def clear(self, board: Any, number: int) -> None:
        self._given_back[_mark(board, number)] = Counter(self._cuda.host)
        board._marks[number] = 0

    def is_free(self, board: Any, number: int) -> bool:
        free: bool = board._marks[number] == 0
        if free:
            self._cuda.host = self._cuda.host | self._given_back.get(_mark(board, number), Counter())
        return free

    def patch_network(self, patch: pytest.MonkeyPatch, staging: ModuleType, sockets: ModuleType) -> None:
        """staging, sockets: modules of NetworkStaging and of SocketChannel."""
        self._claim = staging.NetworkStaging.landing
        patch.setattr(staging.NetworkStaging, "landing", lambda made, size_bytes: self.landing(made, size_bytes))
        patch.setattr(staging.Landing, "give_back", lambda landing: self.give_back(landing))
        patch.setattr(sockets, "_write", self.send)
        patch.setattr(sockets.SocketChannel, "read", lambda channel, room: self.read(channel, room))

    def patch(self, patch: pytest.MonkeyPatch, module: ModuleType) -> None:
        for name in ("lock", "unlock", "copy", "write_word"):
            patch.setattr(cuda_driver, name, getattr(self, name))
        patch.setattr(cuda_driver, "allocate", self.refuse_to_share)
        patch.setattr(module.Word, "is_set", lambda word: self.is_set(word))
        patch.setattr(module.Word, "put", lambda word, value: self.put(word, value))
        patch.setattr(Board, "clear", lambda board, number: self.clear(board, number))
        patch.setattr(Board, "is_free", lambda board, number: self.is_free(board, number))


def _mark(board: Any, number: int) -> Where:
    if not hasattr(board, "lies_at"):
        board.lies_at = _file_at(ctypes.addressof(board._marks))
    file, offset = board.lies_at
    return file, offset + number


def _file_at(address: int) -> Where:
    """The file that is mapped at an address, and where in it that is."""
    begins, rows = [], []
    with open("/proc/self/maps") as maps:
        for line in maps:
            span, _, offset, _, file, *_ = line.split()
            begin = int(span.split("-")[0], 16)
            begins.append(begin)
            rows.append((int(file), int(offset, 16) - begin))
    file, offset = rows[bisect.bisect_right(begins, address) - 1]
    return file, offset + address


@contextlib.contextmanager
def fake_staging(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType = staged, devices: int = 2
) -> Iterator[tuple[FakeCuda, FakeDriver]]:
    """Fake GPUs that cannot read each other's memory. module: that of StagedMemory."""
    with fake_cuda(monkeypatch, devices) as cuda, monkeypatch.context() as patch:
        driver = FakeDriver(cuda)
        driver.patch(patch, module)
        yield cuda, driver


def failing_trials(garbled: str) -> list[Any]:
    """Parameters of a test: what a driver does in which page-locked memory is of no use, and why not, if trials end
    after 0.01 s. garbled: what who reads says of other values.
    """
    refusal = "cuMemHostRegister_v2: operation not permitted"
    return [
        pytest.param({"refusal": refusal}, refusal, id="refused"),
        pytest.param({"garbles": True}, garbled, id="garbled"),
        pytest.param({"late": True}, "what was written there does not arrive within 0.01 s", id="late"),
        pytest.param({"has_words": False}, "cuStreamWriteValue32_v2: operation not supported", id="without words"),
    ]
