"""PolicyRanks: processes that run a denoiser under AsyncDiff's policy, one per component, over gloo."""

from __future__ import annotations

import multiprocessing
import pickle
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch import nn
from torch.distributed import TCPStore  # type: ignore[attr-defined] # public, but not in its __all__

from partitioner.graph.torch_private.gloo import gloo_group
from runtime.devices.memory import resident_bytes
from runtime.errors import EngineError
from tools.bench.asyncdiff_policy import AsyncDiffPolicy
from tools.bench.denoiser_calls import CallArguments
from tools.bench.hooked_denoiser import HookedDenoiser

HOST = "127.0.0.1"


@dataclass(frozen=True)
class PolicyRun:
    """What one trajectory gave.

    Attributes:
        outputs: of each call; every rank has the same.
        call_ms: time of each call on rank 0.
        sent_bytes: in each call; a broadcast tensor counts once for every rank but its source.
        communication_ms: on each rank, time in broadcasts, waiting included.
        resident_bytes: memory of each rank's process afterwards.
    """

    outputs: tuple[torch.Tensor, ...]
    call_ms: tuple[float, ...]
    sent_bytes: tuple[int, ...]
    communication_ms: tuple[float, ...]
    resident_bytes: tuple[int, ...]


class PolicyRanks:
    """Processes that run a denoiser under a policy, one per component, joined by gloo. A context manager."""

    def __init__(
        self, denoiser: nn.Module, policy: AsyncDiffPolicy, *, threads: int = 1, timeout_s: float = 300.0
    ) -> None:
        world = len(policy.components)
        self._timeout_s = timeout_s
        self._store = TCPStore(HOST, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=timeout_s))
        self._connections: list[Connection] = []
        self._processes: list[BaseProcess] = []
        context = multiprocessing.get_context("spawn")
        # plain bytes: what a connection does with tensors would put one copy in memory that all ranks share
        packed = pickle.dumps((denoiser, policy))
        try:
            for rank in range(world):
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=_serve, args=(theirs, rank, world, self._store.port, threads, timeout_s), daemon=True
                )
                process.start()
                theirs.close()
                self._connections.append(ours)
                self._processes.append(process)
                ours.send_bytes(packed)
            for rank in range(world):
                self._answer(rank)
        except BaseException:
            self.close()
            raise

    def run(self, calls: Sequence[CallArguments], warmup: int = 1) -> PolicyRun:
        """Run one trajectory.

        Args:
            calls: keyword arguments of each denoiser call.
            warmup: how many of the first are exact.

        Raises:
            EngineError: a rank failed (with its traceback), died, or does not answer.
        """
        packed = pickle.dumps((list(calls), warmup))
        for connection in self._connections:
            connection.send_bytes(packed)
        answers = [self._answer(rank) for rank in range(len(self._connections))]
        return PolicyRun(
            outputs=tuple(answers[0]["outputs"]),
            call_ms=tuple(answers[0]["call_ms"]),
            sent_bytes=tuple(map(sum, zip(*(answer["sent_bytes"] for answer in answers), strict=True))),
            communication_ms=tuple(answer["communication_ms"] for answer in answers),
            resident_bytes=tuple(answer["resident_bytes"] for answer in answers),
        )

    def _answer(self, rank: int) -> Any:
        try:
            if not self._connections[rank].poll(self._timeout_s):
                raise EngineError(f"rank {rank} of AsyncDiff's policy does not answer within {self._timeout_s:g} s")
            answer = pickle.loads(self._connections[rank].recv_bytes())
        except (EOFError, OSError):
            raise EngineError(f"rank {rank} of AsyncDiff's policy has died") from None
        if isinstance(answer, str):
            raise EngineError(f"rank {rank} of AsyncDiff's policy failed:\n{answer}")
        return answer

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
            process.join()
        for connection in self._connections:
            connection.close()

    def __enter__(self) -> PolicyRanks:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


class _Broadcasts:
    """Blocking broadcasts between the ranks, with what they cost."""

    def __init__(self, group: Any, rank: int, world: int) -> None:
        self._group, self._rank, self._world = group, rank, world
        self.sent_bytes = 0
        self.seconds = 0.0

    def __call__(self, tensor: torch.Tensor, source: int) -> None:
        start = time.perf_counter()
        self._group.broadcast(tensor, source).wait()
        self.seconds += time.perf_counter() - start
        if source == self._rank:
            self.sent_bytes += (self._world - 1) * tensor.numel() * tensor.element_size()


def _serve(connection: Connection, rank: int, world: int, port: int, threads: int, timeout_s: float) -> None:
    """A rank's process: one trajectory for every message, until the connection ends."""
    try:
        torch.set_num_threads(threads)
        denoiser, policy = pickle.loads(connection.recv_bytes())
        timeout = timedelta(seconds=timeout_s)
        group = gloo_group(TCPStore(HOST, port, timeout=timeout), rank, world, host=HOST, timeout=timeout)
        broadcasts = _Broadcasts(group, rank, world)
        hooked = HookedDenoiser(denoiser, policy, rank, broadcasts)
        connection.send_bytes(pickle.dumps(True))
        while True:
            calls, warmup = pickle.loads(connection.recv_bytes())
            connection.send_bytes(pickle.dumps(_run(hooked, broadcasts, calls, warmup)))
    except EOFError:
        return
    except BaseException:
        connection.send_bytes(pickle.dumps(traceback.format_exc()))


def _run(
    hooked: HookedDenoiser, broadcasts: _Broadcasts, calls: Sequence[CallArguments], warmup: int
) -> dict[str, Any]:
    hooked.start(warmup)
    broadcasts.seconds = 0.0
    outputs, call_ms, sent_bytes = [], [], []
    with torch.no_grad():
        for arguments in calls:
            broadcasts.sent_bytes = 0
            start = time.perf_counter()
            outputs.append(hooked(**arguments))
            call_ms.append(1e3 * (time.perf_counter() - start))
            sent_bytes.append(broadcasts.sent_bytes)
    return {
        "outputs": outputs,
        "call_ms": call_ms,
        "sent_bytes": sent_bytes,
        "communication_ms": 1e3 * broadcasts.seconds,
        "resident_bytes": resident_bytes(),
    }
