"""record: the kernels of a function as a CUDA graph; a capture that fails leaves the process as it was, or says so.

A capture fails where the function waits for the GPU, for example. Its end then fails, too, and torch leaves it half
done. Seen with torch 2.11 on an H100: memory that several streams have used is never given back, and random numbers
cannot be drawn. Ending the capture in the allocator by hand, and one capture that succeeds, mend both. Nothing can be
captured into its memory pool any more, so that later captures get another one. Here all of that is done, and then
tried: where it has not helped, every engine of this process ends that uses a GPU.
"""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from partitioner.graph.torch_private.memory import abandon_capture
from profiles.collector import without_collector
from runtime.errors import EngineError

Value = Any  # a tensor, or a list of tensors where an operator makes several

_TRIED_BYTES = 4 << 20
_failed: list[torch.cuda.CUDAGraph] = []  # kept: allocators may still ask them what they capture
_unusable: list[str] = []  # why this process cannot use GPUs any more


class CaptureFailed(Exception):
    """The function could not be captured; the process is as it was. cause: what it raised, None where it did not."""

    def __init__(self, message: str, cause: BaseException | None) -> None:
        super().__init__(message)
        self.cause = cause


class GraphMemory:
    """The memory of one rank's graphs, which are replayed one after the other on one stream.

    Attributes:
        lasting: outputs of graphs that other graphs of the rank may read in place, by id: always the same tensors,
            whose values hold until their graph's next replay.
    """

    def __init__(self) -> None:
        self.lasting: dict[int, torch.Tensor] = {}
        self._pool: Any = None

    @property
    def pool(self) -> Any:
        """The pool, as torch names it."""
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        return self._pool

    def renew(self) -> None:
        """Have later graphs use another pool."""
        self._pool = None


@dataclass(frozen=True)
class CapturedGraph:
    """A captured function. outputs: in the graph's memory. replay: writes them anew, on the current stream."""

    outputs: Sequence[Value]
    replay: Callable[[], None]


def check_usable() -> None:
    """Raise EngineError where a failed capture has left this process unable to use GPUs."""
    if _unusable:
        raise EngineError(_unusable[0])


def record(
    function: Callable[..., Sequence[Value]], arguments: Sequence[Value], memory: GraphMemory, device: torch.device
) -> CapturedGraph:
    """Capture a function on the current stream; nothing else may capture or be run for the first time meanwhile.

    Args:
        function: what to capture; it has been run on such arguments before.
        arguments: which its kernels will read in place at every replay.
        memory: of the rank's graphs.
        device: a GPU.

    Raises:
        CaptureFailed: it cannot be captured.
        EngineError: nor can anything in this process from now on.
    """
    check_usable()
    graph, failure, ended = torch.cuda.CUDAGraph(), None, False
    outputs: Sequence[Value] = ()
    with torch.cuda.device(device):
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        current = torch.cuda.current_stream()
        # the default stream cannot be captured
        stream = torch.cuda.Stream() if current == torch.cuda.default_stream() else current  # type: ignore[no-untyped-call]
        # what garbage does when it goes, such as record an event for who lent it, must not become part of a graph
        gc.collect()
        with torch.cuda.stream(stream), without_collector():
            try:
                graph.capture_begin(pool=memory.pool, capture_error_mode="thread_local")
                outputs = function(*arguments)
            except Exception as error:
                failure = error
            try:
                with warnings.catch_warnings():
                    if failure is not None:
                        warnings.simplefilter("ignore")  # that the graph is empty
                    graph.capture_end()
                ended = True
            except Exception as error:
                failure = failure or error
        if failure is not None:
            outputs = ()
            _failed.append(graph)
            if not ended:
                _clean_up(memory.pool, device)
            memory.renew()
    if failure is not None:
        raise CaptureFailed(f"{type(failure).__name__}: {str(failure).splitlines()[0]}", failure)
    return CapturedGraph(outputs, graph.replay)


def _clean_up(pool: Any, device: torch.device) -> None:
    """End what is left of a failed capture; raises EngineError where torch's allocator does not work after that."""
    assert device.index is not None, "ranks' devices have their index"
    with contextlib.suppress(RuntimeError, AttributeError):  # whether it helped is seen below
        abandon_capture(device.index, pool)
    works = False
    with contextlib.suppress(RuntimeError):
        _capture_nothing(device)  # its end has torch draw random numbers as before
        works = _memory_comes_back(device) and _numbers_are_drawn(device)
    if not works:
        _unusable.append(
            f"a CUDA graph could not be captured, and torch {torch.__version__} cannot use the GPU's memory as it "
            "should after that; start this process anew, with cuda_graphs=False (--no-cuda-graphs)"
        )
        check_usable()


def _capture_nothing(device: torch.device) -> None:
    cell = torch.zeros(1, device=device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(torch.cuda.Stream(device)):  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        graph.capture_begin(capture_error_mode="thread_local")
        cell.zero_()
        graph.capture_end()


def _memory_comes_back(device: torch.device) -> bool:
    """Whether a block that two streams have used is free again once both are done."""

    def held() -> int:
        torch.cuda.synchronize(device)
        torch.empty(1, device=device)  # an allocation looks for such blocks
        known = torch.cuda.memory_stats(device)
        return int(known["active_bytes.all.current"] - known["allocated_bytes.all.current"])

    before = held()
    block = torch.empty(_TRIED_BYTES, dtype=torch.uint8, device=device)
    block.record_stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]
    del block
    return held() - before < _TRIED_BYTES


def _numbers_are_drawn(device: torch.device) -> bool:
    state = torch.cuda.get_rng_state(device)
    torch.rand(1, device=device)
    torch.cuda.set_rng_state(state, device)
    return True
