"""Ranks: starts the ranks other than the driver's, gives them commands, supervises and ends them.

Three kinds with one face: EmulatedRanks (one thread runs all in turn: the oracle of every test), ThreadRanks (one
thread each) and, in processes.py, ProcessRanks (one process each).
"""

from __future__ import annotations

import contextlib
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

import torch

from runtime.cuda_lane import CudaLane, lanes_on
from runtime.cuda_mailbox import StreamMailbox
from runtime.errors import EngineError, RankError, RankStalled
from runtime.lane import Lane
from runtime.report import Report, diagnose, report
from runtime.transport import LocalMailbox
from runtime.worker import Build, Evaluate, Load, Setup, Stop, Work, Worker, run_to_end

T = TypeVar("T")

CAPTURE_S = 10.0  # much longer than the capture of one rank's CUDA graphs takes


class Ranks(ABC):
    """The ranks of one engine. ``worker`` is rank 0's own, which lives in the driver's thread and on ``lane``."""

    worker: Worker

    @property
    def lane(self) -> Lane:
        return Lane(0, self.worker.device)

    @abstractmethod
    def command(self, rank: int, command: Build | Load | Evaluate) -> None:
        """Tell a rank (not 0) what to do next; returns at once."""

    def readable(self, rank: int, files: Mapping[str, Path]) -> dict[str, Path]:
        """Those of the files, by parameter, from which the rank itself can read what the driver has."""
        return {}

    @abstractmethod
    def run(self, work: Work[T]) -> T:
        """Run rank 0's own work to its end while the others do theirs; raises their failures."""

    @abstractmethod
    def wait_loaded(self) -> None:
        """Wait until every rank has done the Load commands it was given; its thread, not its device."""

    @abstractmethod
    def reports(self) -> list[Report]:
        """What every rank has done, by rank."""

    @abstractmethod
    def close(self) -> None:
        """End every rank; nothing is left running. May be called again."""


class EmulatedRanks(Ranks):
    """All ranks in the caller's thread, each running until it must wait; the order cannot change a result."""

    def __init__(self, setups: Sequence[Setup]) -> None:
        self._workers = _local_workers(setups)
        self.worker = self._workers[0]
        self._queues: list[deque[Work[Any]]] = [deque() for _ in setups]

    def command(self, rank: int, command: Build | Load | Evaluate) -> None:
        work = _begin(self._workers[rank], command)
        if work is not None:
            self._queues[rank].append(work)

    def run(self, work: Work[T]) -> T:
        value: list[T] = []

        def own() -> Work[None]:
            value.append((yield from work))

        self._queues[0].append(own())
        self._pump()
        return value[0]

    def wait_loaded(self) -> None:
        self._pump()

    def _pump(self) -> None:
        """Run every rank until all wait for commands, or for messages that later commands will bring."""
        waiting: dict[int, Any] = {}
        with torch.no_grad():
            moved = True
            while moved:
                moved = False
                for rank, queue in enumerate(self._queues):
                    while queue:
                        if rank in waiting and not self._workers[rank].mailbox.ready(waiting[rank]):
                            break
                        waiting.pop(rank, None)
                        moved = True
                        try:
                            waiting[rank] = next(queue[0])
                        except StopIteration:
                            queue.popleft()
        if self._queues[0]:
            raise RankStalled(f"it waits for {waiting[0]}, which no rank will send", rank=0, step=self.worker.step)

    def reports(self) -> list[Report]:
        return [report(worker) for worker in self._workers]

    def close(self) -> None:
        for worker in self._workers:
            worker.mailbox.close()
        self._queues = [deque() for _ in self._queues]


class ThreadRanks(Ranks):
    """One thread per rank; messages are handed over in memory, or copied from GPU to GPU.

    green_contexts: ranks that share a GPU get equal, disjoint shares of it. A rank on a GPU queues its work on
    streams of its own (runtime.cuda_lane): the deadline is for its thread, which a kernel does not hold up.
    """

    def __init__(self, setups: Sequence[Setup], step_timeout_s: float, *, green_contexts: bool = False) -> None:
        self._lanes = lanes_on([setup.device for setup in setups], green_contexts=green_contexts)
        if any(isinstance(lane, CudaLane) for lane in self._lanes):
            self._workers = _stream_workers(setups, self._lanes)
        else:
            self._workers = _local_workers(setups)
        self.worker = self._workers[0]
        self._step_timeout_s = step_timeout_s
        self._queues: list[SimpleQueue[Any]] = [SimpleQueue() for _ in setups]
        self._idle = threading.Condition()
        self._pending = [0] * len(setups)
        self._torch_threads = torch.get_num_threads()
        self._threads = [
            threading.Thread(target=self._serve, args=(rank,), name=f"rank {rank}", daemon=True)
            for rank in range(1, len(setups))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def lane(self) -> Lane:
        return self._lanes[0]

    def command(self, rank: int, command: Build | Load | Evaluate) -> None:
        with self._idle:
            self._pending[rank] += 1
        self._queues[rank].put(command)

    def _serve(self, rank: int) -> None:
        worker = self._workers[rank]
        # a new thread has OpenMP's own default until it is told; another count could change the last bits
        torch.set_num_threads(self._torch_threads)
        try:
            with self._lanes[rank].entered():
                while not isinstance(command := self._queues[rank].get(), Stop):
                    work = _begin(worker, command)
                    if work is not None:
                        run_to_end(work, worker.mailbox)
                    with self._idle:
                        self._pending[rank] -= 1
                        self._idle.notify_all()
        except BaseException as error:
            if not isinstance(error, EngineError):
                component = worker.setup.component
                wrapped = RankError(
                    f"{type(error).__name__}: {error}", rank=rank, component=component, step=worker.step
                )
                wrapped.__cause__ = error
                error = wrapped
            for other in self._workers:
                other.mailbox.fail(error)
            with self._idle:
                self._idle.notify_all()

    def run(self, work: Work[T]) -> T:
        try:
            value = run_to_end(work, self.worker.mailbox, self._step_timeout_s)
            if not all(worker.is_settled for worker in self._workers):
                # the caller must not meet the capture of a CUDA graph, see runtime.cuda_graphs
                self._wait_idle(CAPTURE_S)
            return value
        except TimeoutError:
            components = [worker.setup.component for worker in self._workers]
            raise diagnose(dict(enumerate(self.reports())), components, self._step_timeout_s) from None

    def wait_loaded(self) -> None:
        self._wait_idle()

    def _wait_idle(self, timeout_s: float | None = None) -> None:
        """Wait until every rank's thread has done its commands; raises their failures."""
        with self._idle:
            self._idle.wait_for(
                lambda: not any(self._pending) or self.worker.mailbox.failure is not None, timeout=timeout_s
            )
        if self.worker.mailbox.failure is not None:
            raise self.worker.mailbox.failure

    def reports(self) -> list[Report]:
        return [report(worker) for worker in self._workers]

    def close(self) -> None:
        for queue in self._queues:
            queue.put(Stop())
        for worker in self._workers:
            worker.mailbox.close()
        for thread in self._threads:
            thread.join()
        for lane in self._lanes:
            with contextlib.suppress(RuntimeError):  # a GPU that failed has said so to a rank
                lane.synchronize()


def _local_workers(setups: Sequence[Setup]) -> list[Worker]:
    peers: list[LocalMailbox] = []
    for setup in setups:
        peers.append(LocalMailbox(setup.rank, peers, torch.device(setup.device)))
    return [Worker(setup, mailbox) for setup, mailbox in zip(setups, peers, strict=True)]


def _stream_workers(setups: Sequence[Setup], lanes: Sequence[Lane]) -> list[Worker]:
    peers: list[StreamMailbox] = []
    for lane in lanes:
        peers.append(StreamMailbox(peers, lane))
    return [Worker(setup, mailbox) for setup, mailbox in zip(setups, peers, strict=True)]


def _begin(worker: Worker, command: Build | Load | Evaluate) -> Work[Any] | None:
    if isinstance(command, Build):
        worker.build(command)
        return None
    return worker.load(command) if isinstance(command, Load) else worker.evaluate(command)
