"""StreamPool: the CUDA streams of this process's ranks, which engines use one after the other.

torch hands out the 32 streams that it has per GPU and priority in turn, and keeps for every stream on which matrices
are multiplied a workspace of cuBLAS (32 MiB on Hopper) as long as the process lives. So a stream that an engine has
ended with is the next engine's, and ranks that are at work at the same time do not share one.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable

import torch

_TORCH_HAS = 32  # streams per GPU and priority


def new_stream(device: torch.device, priority: int) -> torch.cuda.Stream:
    """One of torch's streams on this GPU. priority: lower ones are served first."""
    stream: torch.cuda.Stream = torch.cuda.Stream(device, priority)  # type: ignore[no-untyped-call]
    return stream


class StreamPool:
    """Streams that nobody uses now, by GPU and priority. Thread-safe.

    Args:
        new: makes one more, or gives one that it has given before.
    """

    def __init__(self, new: Callable[[torch.device, int], torch.cuda.Stream] = new_stream) -> None:
        self._new = new
        self._lock = threading.Lock()
        self._free: dict[tuple[torch.device, int], list[torch.cuda.Stream]] = defaultdict(list)
        self._known: dict[tuple[torch.device, int], list[int]] = defaultdict(list)  # all handles, the oldest first

    def take(self, device: torch.device, priority: int = 0) -> torch.cuda.Stream:
        """The oldest stream that nobody else has; where torch has no more, one that another rank has, too.

        Args:
            device: the GPU, with its index.
            priority: lower ones are served first.
        """
        with self._lock:
            free, known = self._free[device, priority], self._known[device, priority]
            if free:
                return free.pop(min(range(len(free)), key=lambda index: known.index(free[index].cuda_stream)))
            for _ in range(_TORCH_HAS + 1):  # one more, so that streams that must be shared are not all the same one
                stream = self._new(device, priority)
                if stream.cuda_stream not in known:
                    known.append(stream.cuda_stream)
                    break
            return stream

    def give_back(self, device: torch.device, priority: int, stream: torch.cuda.Stream) -> None:
        """Let others have a stream on which all work is done, as it was taken."""
        with self._lock:
            if all(stream.cuda_stream != free.cuda_stream for free in self._free[device, priority]):
                self._free[device, priority].append(stream)


STREAMS = StreamPool()  # of this process
