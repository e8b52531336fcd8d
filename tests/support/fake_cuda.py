"""FakeCuda: GPUs that are not there. Their tensors compute on the CPU at once; the order of streams is checked.

A tensor says that it is on cuda:0; its data lie in a tensor on the CPU. Every operator is queued on the current stream
of its thread, and every stream, and every thread of the host, has a vector clock: how much of every other stream it is
sure to come after. What waits for an event comes after all that the event's stream had queued. So these are errors,
whatever the timing:

- a read, or a write, that does not come after the last write;
- a write in place that does not come after all reads;
- memory that is freed, and may be given out again on its own stream, while another stream may still use it, unless that
  was recorded on it (record_stream).

A device has as many bytes as is said; who takes more gets torch's own error.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from runtime.devices.stream_pool import STREAMS

Clock = Counter[int]  # number of a stream -> how many of its operators are sure to be done

_aten = torch.ops.aten
_READ_BY_HOST = {
    torch.Tensor.__float__, torch.Tensor.__int__, torch.Tensor.__bool__, torch.Tensor.item, torch.Tensor.tolist,
}  # fmt: skip


class FakeEvent:
    """A point in a stream."""

    def __init__(self, cuda: FakeCuda, clock: Clock) -> None:
        self.clock = clock
        self._cuda = cuda

    def synchronize(self) -> None:
        self._cuda.host |= self.clock

    def query(self) -> bool:
        self._cuda.host |= self.clock
        return True


class FakeStream:
    """A stream of a fake GPU, with the methods of torch's that the project uses."""

    def __init__(self, cuda: FakeCuda, device: torch.device, priority: int, number: int) -> None:
        self.device, self.priority, self.cuda_stream = device, priority, number
        self.clock: Clock = Counter()
        self._cuda = cuda

    def record_event(self) -> FakeEvent:
        return FakeEvent(self._cuda, Counter(self.clock))

    def wait_event(self, event: FakeEvent) -> None:
        self.clock |= event.clock

    def wait_stream(self, other: FakeStream) -> None:
        self.clock |= other.clock

    def query(self) -> bool:
        self._cuda.host |= self.clock
        return True

    def synchronize(self) -> None:
        self._cuda.host |= self.clock


class Block:
    """Memory on a fake GPU: on which stream it was allocated, and who has used it since."""

    def __init__(self, cuda: FakeCuda, stream: FakeStream, size_bytes: int) -> None:
        self.stream = stream
        self.size_bytes = size_bytes
        self.written = (stream.cuda_stream, 0)
        self.reads: Clock = Counter()
        self.recorded: set[int] = set()
        cuda.take(stream.device, size_bytes)
        weakref.finalize(self, cuda.freed, stream, size_bytes, self.reads, self.recorded).atexit = False


# of a fake tensor, by its id: an engine takes attributes of parameters for the user's
_PARTS: dict[int, tuple[FakeCuda, torch.Tensor, Block]] = {}


class FakeTensor(torch.Tensor):
    """A tensor on a fake GPU.

    data_here: its data, on the CPU. block: its memory, which views have together.
    """

    @property
    def cuda_(self) -> FakeCuda:
        return _PARTS[id(self)][0]

    @property
    def data_here(self) -> torch.Tensor:
        return _PARTS[id(self)][1]

    @property
    def block(self) -> Block:
        return _PARTS[id(self)][2]

    @staticmethod
    def __new__(cls, cuda: FakeCuda, data: torch.Tensor, block: Block) -> FakeTensor:
        made: FakeTensor = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, data.shape, strides=data.stride(), storage_offset=data.storage_offset(), dtype=data.dtype,
            device=block.stream.device,
        )  # fmt: skip
        _PARTS[id(made)] = cuda, data, block
        weakref.finalize(made, _PARTS.pop, id(made), None).atexit = False
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.data_ptr, torch.Tensor.untyped_storage):
            return func(args[0].data_here)
        with torch._C.DisableTorchFunctionSubclass():
            if func in _READ_BY_HOST:  # a CPU's torch has no device guard for them, nor for indexing
                return func(args[0].cpu())
            if func is torch.Tensor.copy_:
                (fake, *_) = (item for item in args if isinstance(item, FakeTensor))
                return fake.cuda_.run(_aten.copy_.default, args, kwargs or {})
            if func is torch.Tensor.__getitem__ and isinstance(args[1], list):
                return args[0].cuda_.run(_aten.index.Tensor, (args[0], [torch.tensor(args[1])]), {})
            if func is torch.Tensor.__getitem__:
                return FakeTensor(args[0].cuda_, args[0].data_here[args[1]], args[0].block)
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _fakes(args, kwargs)[0].cuda_.run(func, args, kwargs or {})

    def record_stream(self, s: Any) -> None:
        self.block.recorded.add(s.cuda_stream)

    def __repr__(self, **_: Any) -> str:
        return f"fake {self.device}: {self.data_here!r}"


class _Mode(TorchDispatchMode):
    """Sends what makes tensors on a fake GPU there, in the thread that is in it."""

    def __init__(self, cuda: FakeCuda) -> None:
        super().__init__()
        self._cuda = cuda

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._cuda.run(func, args, kwargs or {})


class FakeCuda:
    """Fake GPUs, and the state of torch.cuda.

    Args:
        devices: how many there are.
        size_bytes: memory of each.

    Attributes:
        errors: what was found to be out of order, in words.
        waits: how often a host has waited for an operator.
        peak: by device, the most memory that was in use at once.
    """

    def __init__(self, devices: int, size_bytes: int = 2**40) -> None:
        self.size_bytes = size_bytes
        self.errors: list[str] = []
        self.waits = 0
        self.used: Counter[int] = Counter()
        self.peak: Counter[int] = Counter()
        self.count = devices
        self._numbers = itertools.count(1)
        self._lock = threading.RLock()
        self._threads = threading.local()
        self._default = [self.new_stream(torch.device("cuda", index)) for index in range(devices)]

    # ---- what torch.cuda has

    def patches(self) -> Mapping[str, Any]:
        """Names in torch.cuda, and what stands for them."""
        return {
            "_lazy_init": lambda: None,
            "is_available": lambda: True,
            "device_count": lambda: self.count,
            "current_device": lambda: 0,
            "Stream": self.new_stream,
            "current_stream": self.current_stream,
            "default_stream": lambda device=None: self._default[_index(device)],
            "stream": self.stream,
            "empty_cache": lambda: None,
            "memory_reserved": lambda device=None: self.used[_index(device)],
            "memory_allocated": lambda device=None: self.used[_index(device)],
            "get_per_process_memory_fraction": lambda device=None: 1.0,
            "mem_get_info": lambda device=None: (self.size_bytes - self.used[_index(device)], self.size_bytes),
        }

    def new_stream(self, device: Any = None, priority: int = 0) -> FakeStream:
        return FakeStream(self, torch.device("cuda", _index(device)), priority, next(self._numbers))

    def current_stream(self, device: Any = None) -> FakeStream:
        streams: list[FakeStream] = getattr(self._threads, "streams", self._default)
        return streams[_index(device)]

    @contextlib.contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        before: list[FakeStream] = getattr(self._threads, "streams", self._default)
        self._threads.streams = [*before]
        self._threads.streams[_index(stream.device)] = stream
        try:
            with contextlib.ExitStack() as stack:
                if not getattr(self._threads, "active", False):
                    stack.enter_context(self.active())
                yield
        finally:
            self._threads.streams = before

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Have this thread's tensors go to fake GPUs where a GPU is named."""
        self._threads.active = True
        try:
            with _Mode(self):
                yield
        finally:
            self._threads.active = False

    # ---- memory

    def take(self, device: torch.device, size_bytes: int) -> None:
        with self._lock:
            index = _index(device)
            if self.used[index] + size_bytes > self.size_bytes:
                raise torch.OutOfMemoryError(
                    f"CUDA out of memory. Tried to allocate {size_bytes} bytes. {device} is full"
                )
            self.used[index] += size_bytes
            self.peak[index] = max(self.peak[index], self.used[index])

    def freed(self, stream: FakeStream, size_bytes: int, reads: Clock, recorded: set[int]) -> None:
        self.used[_index(stream.device)] -= size_bytes
        for number, count in reads.items():
            known = max(stream.clock[number], self.host[number])
            if number != stream.cuda_stream and number not in recorded and known < count:
                self.errors.append(f"memory of stream {stream.cuda_stream} is freed while stream {number} reads it")

    # ---- operators

    @property
    def host(self) -> Clock:
        """What this thread is sure to be done."""
        if not hasattr(self._threads, "host"):
            self._threads.host = Counter()
        clock: Clock = self._threads.host
        return clock

    @host.setter
    def host(self, clock: Clock) -> None:
        self._threads.host = clock

    @contextlib.contextmanager
    def as_host(self, clock: Clock) -> Iterator[None]:
        """Have this thread be another host, whose clock is this one."""
        before, self.host = self.host, clock
        try:
            yield
        finally:
            clock |= self.host
            self.host = before

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run an operator: on a fake GPU where its tensors or its device say so."""
        fakes = _fakes(args, kwargs)
        device = kwargs.get("device")
        target = torch.device(device) if device is not None else None
        if target is None and func is _aten.copy_.default:
            target = args[0].device
        if not fakes and (target is None or target.type != "cuda"):
            return func(*args, **{**kwargs, "pin_memory": False} if kwargs.get("pin_memory") else kwargs)
        if func is torch.ops.prim.device.default:
            return fakes[0].block.stream.device
        if func is _aten._fused_sdp_choice.default:
            return 0  # plain attention, which is made of operators
        if target is None:
            target = fakes[0].device
        with self._lock:
            stream = self._queue_on(fakes, target)
            if not _is_view(func):
                self._look_at(func, args, kwargs, stream)
            here = {key: value for key, value in kwargs.items() if key not in ("device", "pin_memory", "non_blocking")}
            if device is not None:
                here["device"] = torch.device("cpu")
            made = func(*_each(args, _data), **{key: _each(value, _data) for key, value in here.items()})
            return self._wrapped(func, made, fakes, target, stream, kwargs)

    def _queue_on(self, fakes: list[FakeTensor], target: torch.device) -> FakeStream:
        """The stream that the operator is queued on: a copy between GPUs on that of the source, between barriers."""
        sources = [fake.device for fake in fakes if fake.device != target]
        stream = self.current_stream(sources[0] if sources else target)
        stream.clock |= self.host
        if sources and target.type == "cuda":
            stream.clock |= self.current_stream(target).clock
        stream.clock[stream.cuda_stream] += 1
        if sources and target.type == "cuda":
            self.current_stream(target).clock |= stream.clock
        return stream

    def _look_at(self, func: Any, args: Any, kwargs: Any, stream: FakeStream) -> None:
        for argument, value in zip(func._schema.arguments, args, strict=False):
            written = argument.alias_info is not None and argument.alias_info.is_write
            for fake in _fakes((value,), None):
                self._use(fake.block, stream, func, written=written)
        for fake in _fakes((), kwargs):
            self._use(fake.block, stream, func, written=False)

    def _use(self, block: Block, stream: FakeStream, name: object, *, written: bool) -> None:
        writer, count = block.written
        if stream.clock[writer] < count:
            self.errors.append(f"{name} on stream {stream.cuda_stream} does not wait for what stream {writer} writes")
        if not written:
            block.reads[stream.cuda_stream] = stream.clock[stream.cuda_stream]
            return
        for reader, read in block.reads.items():
            if stream.clock[reader] < read:
                self.errors.append(f"{name} on stream {stream.cuda_stream} writes to what stream {reader} reads")
        block.written = (stream.cuda_stream, stream.clock[stream.cuda_stream])
        block.reads[stream.cuda_stream] = stream.clock[stream.cuda_stream]

    def _wrapped(
        self, func: Any, made: Any, fakes: list[FakeTensor], target: torch.device, stream: FakeStream, kwargs: Any
    ) -> Any:
        waits = not kwargs.get("non_blocking")
        if target.type != "cuda":
            assert waits or func is _aten.copy_.default, "a copy to pageable memory that nobody waits for"
        if (
            (target.type != "cuda" and waits)
            or isinstance(made, (bool, int, float))
            or (not fakes and func is _aten._to_copy.default)
        ):
            self.host = self.host | stream.clock
            self.waits += 1
        if target.type != "cuda":
            return made
        by_memory = {fake.data_here.untyped_storage().data_ptr(): fake for fake in fakes}

        def wrapped(tensor: torch.Tensor) -> torch.Tensor:
            for fake in fakes:
                if fake.data_here is tensor:
                    return fake
            same = by_memory.get(tensor.untyped_storage().data_ptr()) if tensor.nbytes else None
            if same is not None and same.device == target:
                return FakeTensor(self, tensor, same.block)
            own = self.current_stream(target)
            if same is not None:
                tensor = tensor.clone()
            block = Block(self, own, tensor.untyped_storage().nbytes())
            block.written = (stream.cuda_stream, stream.clock[stream.cuda_stream])
            return FakeTensor(self, tensor, block)

        return _each(made, lambda value: wrapped(value) if isinstance(value, torch.Tensor) else value)


def _fakes(args: Any, kwargs: Any) -> list[FakeTensor]:
    """The fake tensors among an operator's arguments, in lists, too."""
    found: list[FakeTensor] = []
    for value in (*args, *(kwargs or {}).values()):
        if isinstance(value, FakeTensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += _fakes(value, None)
    return found


def _each(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)([_each(item, change) for item in value])
    return change(value)


def _data(value: Any) -> Any:
    return value.data_here if isinstance(value, FakeTensor) else value


def _index(device: Any) -> int:
    if device is None:
        return 0
    if isinstance(device, int):
        return device
    return torch.device(device).index or 0


@functools.cache
def _is_view(func: Any) -> bool:
    """Whether it only looks at memory in another way, and runs nothing."""
    returned = [item.alias_info for item in func._schema.returns]
    return bool(returned) and all(info is not None and not info.is_write for info in returned)


@contextlib.contextmanager
def fake_cuda(monkeypatch: pytest.MonkeyPatch, devices: int = 2, size_bytes: int = 2**40) -> Iterator[FakeCuda]:
    """Fake GPUs instead of torch.cuda's, also in this thread."""
    made = FakeCuda(devices, size_bytes)
    with monkeypatch.context() as patch:
        for name, value in made.patches().items():
            patch.setattr(torch.cuda, name, value)
        patch.setattr(STREAMS, "_free", defaultdict(list))
        patch.setattr(STREAMS, "_known", defaultdict(list))
        # Module.to gives a module's parameters the class of what they become
        patch.setattr(torch.__future__, "get_overwrite_module_params_on_conversion", lambda: True)
        with made.active():
            yield made
