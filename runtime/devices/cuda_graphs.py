"""CUDA graphs: the kernels of a segment, captured once in memory of their own and launched together from then on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

Pool = Any  # torch gives the type of its memory pools no public name
Value = Any  # a tensor, or a list of tensors where an operator makes several
InputLayout = tuple[tuple[torch.Size, tuple[int, ...]], ...]

EAGER_CALLS = 3  # before a capture, in which code is loaded, kernels are chosen and libraries get their workspaces

# During a capture no other thread may do what concerns the whole device, such as waiting for all of it, and torch
# itself waits for all of it before a capture. So captures and the calls before them happen in one thread at a time.
_NO_REPLAY = threading.Lock()


def graph_pool() -> Pool:
    """A memory pool for the graphs of one rank, which it replays one after the other on one stream."""
    return torch.cuda.graph_pool_handle()


class GraphedRun:
    """A function on one GPU; after EAGER_CALLS calls its kernels are replayed from a CUDA graph.

    The first calls with given shapes and strides, then the later ones, all on the current stream:

        calls 1 to 3   run the function
        call 4         capture the function, then as below
        calls 5 ...    copy the moving inputs into static buffers; replay the graph; copy the outputs out of its memory

    The copies out let the next replay overwrite nothing that anybody still has: messages under way, lagged values,
    results.

    Args:
        function: what to run.
        fixed: by position, whether an input is the same tensor in every call (a parameter); kernels read those in
            place. The other inputs are the moving ones.
        pool: the memory of the rank's graphs.
    """

    def __init__(self, function: Callable[..., Sequence[Value]], fixed: Sequence[bool], pool: Pool) -> None:
        self._function = function
        self._fixed = tuple(fixed)
        self._pool = pool
        self._eager_calls: dict[InputLayout, int] = {}
        self._captures: dict[InputLayout, _Capture] = {}

    @property
    def is_captured(self) -> bool:
        """Whether there is a graph for every signature that it was called with, and at least one."""
        return bool(self._captures) and self._captures.keys() == self._eager_calls.keys()

    def __call__(self, *inputs: Value) -> Sequence[Value]:
        moving = list(_tensors(given for given, fixed in zip(inputs, self._fixed, strict=True) if not fixed))
        signature = tuple((tensor.shape, tensor.stride()) for tensor in moving)
        if signature not in self._captures:
            with _NO_REPLAY:
                done = self._eager_calls.get(signature, 0)
                if done < EAGER_CALLS:
                    self._eager_calls[signature] = done + 1
                    return self._function(*inputs)
                self._captures[signature] = _Capture(self._function, inputs, self._fixed, self._pool)
        return self._captures[signature].replay(moving)


class _Capture:
    """A graph, and the tensors that its kernels read and write."""

    def __init__(
        self, function: Callable[..., Sequence[Value]], inputs: Sequence[Value], fixed: Sequence[bool], pool: Pool
    ) -> None:
        # the graph knows their addresses only: they must live as long as it does
        self._arguments = [
            given if same else _each(_room_like, given) for given, same in zip(inputs, fixed, strict=True)
        ]
        self._buffers = list(_tensors(buffer for buffer, same in zip(self._arguments, fixed, strict=True) if not same))
        self._graph = torch.cuda.CUDAGraph()
        device = next((tensor.device for tensor in _tensors(inputs) if tensor.is_cuda), None)
        with torch.cuda.device(device):
            current = torch.cuda.current_stream()
            # the default stream cannot be captured; torch then takes one of its own
            stream = None if current == torch.cuda.default_stream() else current
            with torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                self._outputs = function(*self._arguments)

    def replay(self, moving: Sequence[torch.Tensor]) -> list[Value]:
        for buffer, given in zip(self._buffers, moving, strict=True):
            buffer.copy_(given)
        self._graph.replay()
        return [_each(_copied_out, output) for output in self._outputs]


def _tensors(values: Iterator[Value] | Sequence[Value]) -> Iterator[torch.Tensor]:
    for value in values:
        yield from value if isinstance(value, (list, tuple)) else (value,)


def _each(function: Callable[[torch.Tensor], torch.Tensor], value: Value) -> Value:
    return [function(tensor) for tensor in value] if isinstance(value, (list, tuple)) else function(value)


def _copied_out(tensor: torch.Tensor) -> torch.Tensor:
    return _room_like(tensor).copy_(tensor)


def _room_like(tensor: torch.Tensor) -> torch.Tensor:
    """Memory of its own for a tensor of this shape and, unless elements share memory, these strides."""
    if any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
