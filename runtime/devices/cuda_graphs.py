"""CUDA graphs: the kernels of a segment, captured once in memory of their own and launched together from then on.

What a graph reads and writes is at fixed places. Of a segment's inputs

    fixed     parameters and constants                 are read where they are
    lasting   made by another graph of the rank        are read where that one leaves them
    kept      change with the prompt only              are copied into a buffer when they are others
    moving    all else, such as messages               are copied into buffers before every replay, all at once

and of its outputs those that leave the component are copied out, all at once, so that nobody ever sees a replay write:
messages under way, lagged values, results. The others are lasting. So at most one evaluation of a rank may use its
graphs at a time (runtime.worker.component).
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from partitioner.graph.torch_private.memory import copy_all
from runtime.devices import capture
from runtime.devices.capture import CaptureFailed, GraphMemory, Value

Layouts = tuple[tuple[torch.Size, tuple[int, ...]], ...]

EAGER_CALLS = 3  # before a capture, in which code is loaded, kernels are chosen and libraries get their workspaces

# During a capture no other thread may do what concerns the whole device, such as waiting for all of it, and a capture
# itself waits for all of it before. So captures and the calls before them happen in one thread at a time.
_NO_REPLAY = threading.Lock()
_LOGGER = logging.getLogger("runtime")
_said: set[str] = set()


@dataclass(frozen=True)
class Graphed:
    """What is to be replayed, and what is known of it.

    Attributes:
        function: what to run.
        name: of it, for warnings.
        fixed: by position, whether an input is the same tensor in every call (a parameter).
        kept: by position, whether an input is another tensor whenever it holds other values.
        leaves: by position, whether an output may be read after the next call.
        obstacle: says of inputs why the function cannot be captured, None where nothing is known against it.
        where: says in which node an error was raised; None where it cannot be told.
    """

    function: Callable[..., Sequence[Value]]
    name: str
    fixed: Sequence[bool]
    kept: Sequence[bool]
    leaves: Sequence[bool]
    obstacle: Callable[[Sequence[Value]], str | None]
    where: Callable[[BaseException], str | None]


class GraphedRun:
    """A function on one GPU; after EAGER_CALLS calls its kernels are replayed from a CUDA graph, if they can be.

    For inputs of given shapes and strides, all on the current stream:

        calls 1 to 3   run the function, on copies like the graph's own buffers
        call 4         capture the function, then as below; where that cannot be, run it from now on
        calls 5 ...    fill the buffers; replay the graph; copy out what leaves

    Attributes:
        refusal: why it is not captured, now or ever; None while nothing is known against it.

    Args:
        graphed: what to run.
        memory: of the rank's graphs.
        device: a GPU.
    """

    def __init__(self, graphed: Graphed, memory: GraphMemory, device: torch.device) -> None:
        self.refusal: str | None = None
        self._graphed = graphed
        self._memory = memory
        self._device = device
        self._moving = [position for position, fixed in enumerate(graphed.fixed) if not fixed]
        self._eager_calls: dict[Layouts, int] = {}
        self._captures: dict[tuple[Layouts, tuple[int, ...]], _Capture] = {}

    @property
    def is_settled(self) -> bool:
        """Whether it was called, and all is captured that it was called with so far, or will not be."""
        captured = {layouts for layouts, _ in self._captures}
        return self.refusal is not None or (bool(captured) and captured == self._eager_calls.keys())

    def __call__(self, *inputs: Value) -> Sequence[Value]:
        """Run or replay it."""
        if self.refusal is not None:
            return self._graphed.function(*inputs)
        moving = _tensors(inputs[position] for position in self._moving)
        lasting = self._memory.lasting
        layouts = tuple([(tensor.shape, tensor.stride()) for tensor in moving])
        key = layouts, tuple([id(tensor) if id(tensor) in lasting else 0 for tensor in moving])
        found = self._captures.get(key)
        if found is None:
            with _NO_REPLAY:
                if not self._may_capture(layouts, inputs):
                    return self._graphed.function(*self._apart(inputs))
                found = self._captured(inputs)
            if found is None:
                return self._graphed.function(*inputs)
            self._captures[key] = found
        return found.replay(moving)

    def _may_capture(self, layouts: Layouts, inputs: Sequence[Value]) -> bool:
        """Whether all is known that is learnt from eager calls; counts this one where not."""
        done = self._eager_calls.setdefault(layouts, 0)
        if done == 0:
            self.refusal = self._graphed.obstacle(inputs)
            if self.refusal is not None:
                self._say(self.refusal)
                return False
        if done < EAGER_CALLS:
            self._eager_calls[layouts] = done + 1
            return False
        return True

    def _apart(self, inputs: Sequence[Value]) -> list[Value]:
        """The inputs as the graph will have them, so that what is compiled or chosen by their layout is the same."""
        return [
            given if fixed else _each(_copied, given) for given, fixed in zip(inputs, self._graphed.fixed, strict=True)
        ]

    def _captured(self, inputs: Sequence[Value]) -> _Capture | None:
        try:
            return _Capture(self._graphed, inputs, self._memory, self._device)
        except CaptureFailed as error:
            node = self._graphed.where(error.cause) if error.cause is not None else None
            self.refusal = str(error) if node is None else f"{error} at node {node}"
        self._say(self.refusal)
        return None

    def _say(self, reason: str) -> None:
        sentence = (
            f"the kernels of {self._graphed.name} are launched one by one, for they cannot be captured as a CUDA "
            f"graph: {reason}"
        )
        if sentence not in _said:
            _said.add(sentence)
            _LOGGER.warning(sentence)


class _Capture:
    """A graph, and the tensors that its kernels read and write: they must live as long as it does."""

    def __init__(self, graphed: Graphed, inputs: Sequence[Value], memory: GraphMemory, device: torch.device) -> None:
        def own(tensor: torch.Tensor) -> torch.Tensor:
            return tensor if memory.lasting.get(id(tensor)) is tensor else _room_like(tensor)

        pairs = list(zip(inputs, graphed.fixed, graphed.kept, strict=True))
        self._arguments = [given if fixed else _each(own, given) for given, fixed, _ in pairs]
        given_ones = _tensors(given for given, fixed, _ in pairs if not fixed)
        buffers = _tensors(mine for mine, (_, fixed, _) in zip(self._arguments, pairs, strict=True) if not fixed)
        is_kept = [kept for given, fixed, kept in pairs if not fixed for _ in _tensors([given])]
        copied = [n for n, (mine, given) in enumerate(zip(buffers, given_ones, strict=True)) if mine is not given]
        self._kept = {n: buffers[n] for n in copied if is_kept[n]}
        self._held: dict[int, tuple[Callable[[], Any], int]] = {}  # what is in those: a reference, and its version
        self._moving = _alike({n: buffers[n] for n in copied if not is_kept[n]})
        self._recording = capture.record(graphed.function, self._arguments, memory, device)
        self._outputs = list(self._recording.outputs)
        self._leaving = [n for n, leaves in enumerate(graphed.leaves) if leaves]
        made = _tensors(self._outputs[n] for n in self._leaving)
        self._made = _alike(dict(enumerate(made)))
        for tensor in _tensors(out for out, leaves in zip(self._outputs, graphed.leaves, strict=True) if not leaves):
            memory.lasting[id(tensor)] = tensor

    def replay(self, moving: Sequence[torch.Tensor]) -> list[Value]:
        for number, buffer in self._kept.items():
            given = moving[number]
            known, version = self._held.get(number, (None, -1))
            if known is None or known() is not given or given.is_inference() or given._version != version:
                buffer.copy_(given)
                self._held[number] = weakref.ref(given), -1 if given.is_inference() else given._version
        for numbers, buffers in self._moving:
            copy_all(buffers, [moving[number] for number in numbers])
        self._recording.replay()
        outputs = list(self._outputs)
        rooms: dict[int, torch.Tensor] = {}
        for numbers, sources in self._made:
            fresh = [_room_like(source) for source in sources]
            copy_all(fresh, sources)
            rooms.update(zip(numbers, fresh, strict=True))
        number = 0
        for position in self._leaving:
            if isinstance(outputs[position], (list, tuple)):
                count = len(outputs[position])
                outputs[position] = [rooms[number + k] for k in range(count)]
                number += count
            else:
                outputs[position] = rooms[number]
                number += 1
        return outputs


def _alike(tensors: dict[int, torch.Tensor]) -> list[tuple[list[int], list[torch.Tensor]]]:
    """Tensors in groups that one kernel can copy: of one dtype and without gaps; the others each by itself."""
    groups: dict[object, tuple[list[int], list[torch.Tensor]]] = {}
    for number, tensor in tensors.items():
        without_gaps = torch.empty_like(tensor, device="meta").stride() == tensor.stride()
        numbers, members = groups.setdefault(tensor.dtype if without_gaps else number, ([], []))
        numbers.append(number)
        members.append(tensor)
    return list(groups.values())


def _tensors(values: Iterable[Value]) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    for value in values:
        if isinstance(value, (list, tuple)):
            found += value
        else:
            found.append(value)
    return found


def _each(function: Callable[[torch.Tensor], torch.Tensor], value: Value) -> Value:
    return [function(tensor) for tensor in value] if isinstance(value, (list, tuple)) else function(value)


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    return _room_like(tensor).copy_(tensor)


def _room_like(tensor: torch.Tensor) -> torch.Tensor:
    """Memory of its own for a tensor of this shape and, unless elements share memory, these strides."""
    if any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
