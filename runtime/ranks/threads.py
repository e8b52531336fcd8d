"""ThreadRanks: one thread per rank, with a stream of its own on a GPU."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
import time
from collections.abc import Sequence
from functools import partial
from queue import SimpleQueue
from typing import Any

import torch

from runtime.devices.acceleration import device_streams
from runtime.devices.cuda_stream import CudaDeviceStream
from runtime.devices.stream import DeviceStream
from runtime.errors import EngineClosed, EngineError, RankError, RankStalled
from runtime.ranks.base import Ranks, Setups, T, begin_work, local_workers, workers_of
from runtime.ranks.diagnosis import diagnose
from runtime.ranks.left_behind import LeftBehind, await_devices, leave_behind
from runtime.ranks.rank_report import Report, latest_of, report
from runtime.ranks.watch import Watch
from runtime.transport.stream_mailbox import StreamMailbox
from runtime.turns import EngineThread
from runtime.worker.commands import Evaluate, ForgetGraphs, RankCommand, Stop
from runtime.worker.waiting import Waiting, run_to_end
from runtime.worker.worker import Worker

CAPTURE_S = 10.0  # much longer than the capture of one rank's CUDA graphs takes
_GRACE_S = 1.0  # how long a rank that has missed a deadline still has to end

_LOGGER = logging.getLogger("runtime")


class ThreadRanks(Ranks):
    """One thread per rank; messages are passed on in memory, or copied from GPU to GPU.

    A rank on a GPU queues its work on streams of its own (runtime.devices.cuda_stream), so its thread does not wait for
    its kernels. The step deadline is for the threads, and for what they have queued, from when they have.

    A thread cannot be ended from outside: one that misses a deadline is left behind (runtime.ranks.left_behind).

    Args:
        setups: by rank and denoiser; the first rank is the driver's own.
        step_timeout_s: for one step.
        startup_timeout_s: for the ranks to have their parameters, and for those left behind on the devices to end.
        green_contexts: ranks that share a GPU get equal, disjoint shares of it.

    Raises:
        StartupError: a rank that was left behind is still at work on one of the devices.
    """

    def __init__(
        self,
        setups: Sequence[Setups],
        step_timeout_s: float,
        startup_timeout_s: float,
        *,
        green_contexts: bool = False,
    ) -> None:
        await_devices({own[0].device for own in setups}, startup_timeout_s)
        self._streams = device_streams([own[0].device for own in setups], green_contexts=green_contexts)
        self._watch: Watch | None = None
        if any(isinstance(stream, CudaDeviceStream) for stream in self._streams):
            self._workers = _stream_workers(setups, self._streams)
            self._watch = Watch(step_timeout_s, self._not_done)
        else:
            self._workers = local_workers(setups)
        self.workers = self._workers[0]
        self._step_timeout_s = step_timeout_s
        self._startup_timeout_s = startup_timeout_s
        self._stalled: RankStalled | None = None
        self._queues: list[SimpleQueue[Any]] = [SimpleQueue() for _ in setups]
        self._idle = threading.Condition()
        self._pending = [0] * len(setups)
        self._evaluated: set[tuple[int, int, int]] = set()  # (rank, denoiser, table) that was told to run
        self._torch_threads = torch.get_num_threads()
        self._threads = {
            rank: EngineThread(partial(self._serve, rank), f"rank {rank}") for rank in range(1, len(setups))
        }
        self._running = list(range(len(setups)))  # ranks that have not ended
        self._owner = os.getpid()
        self._closed = False
        atexit.register(self.close)  # a thread that comes out of torch later takes the program down with it
        for thread in self._threads.values():
            thread.start()

    @property
    def stream(self) -> DeviceStream:
        return self._streams[0]

    def command(self, rank: int, command: RankCommand) -> None:
        if isinstance(command.command, Evaluate):
            self._evaluated.add((rank, command.denoiser, command.command.table))
        elif isinstance(command.command, ForgetGraphs):
            self._evaluated -= {(rank, command.denoiser, table) for table in command.command.tables}
        with self._idle:
            self._pending[rank] += 1
        self._queues[rank].put(command)

    def _serve(self, rank: int) -> None:
        workers = self._workers[rank]
        # a new thread has OpenMP's own default until it is told; another count could change the last bits
        torch.set_num_threads(self._torch_threads)
        try:
            with self._streams[rank].entered():
                while not isinstance(command := self._queues[rank].get(), Stop):
                    work = begin_work(workers, command)
                    if work is not None:
                        run_to_end(work, workers[0].mailbox)
                        self._look_after(rank)
                    with self._idle:
                        self._pending[rank] -= 1
                        self._idle.notify_all()
        except BaseException as error:
            if not isinstance(error, EngineError):
                worker = latest_of(workers)
                component = worker.setup.component
                wrapped = RankError(
                    f"{type(error).__name__}: {error}", rank=rank, component=component, step=worker.step
                )
                wrapped.__cause__ = error
                error = wrapped
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        for workers in self._workers:
            workers[0].mailbox.fail(error)
        with self._idle:
            self._idle.notify_all()

    def _look_after(self, rank: int) -> None:
        """Have it noticed when the device does not get to the end of what a rank has queued so far."""
        event = self._streams[rank].now()
        if event is not None and self._watch is not None:
            self._watch.add(rank, event)

    def _not_done(self, ranks: list[int]) -> None:
        devices = ", ".join(dict.fromkeys(str(self._streams[rank].device) for rank in ranks))
        worker = latest_of(self._workers[ranks[-1]])
        self._stalled = RankStalled(
            f"{devices} has not done within {self._step_timeout_s:g} s what ranks {', '.join(map(str, ranks))} queued "
            "there: a kernel hangs or takes longer. Whoever waits for the device goes on waiting. If steps may take "
            "this long, allow more with --step-timeout",
            rank=ranks[-1],
            component=worker.setup.component,
            step=worker.step,
        )
        _LOGGER.error("%s", self._stalled)  # the caller may be waiting for the device itself
        self._fail(self._stalled)

    def run(self, work: Waiting[T]) -> T:
        self._check()
        try:
            value = run_to_end(work, self.workers[0].mailbox, self._step_timeout_s)
            self._look_after(0)
            if not all(self._workers[rank][denoiser].is_settled(table) for rank, denoiser, table in self._evaluated):
                # the caller must not use the device during the capture of a CUDA graph, see runtime.devices.cuda_graphs
                self._wait_idle(CAPTURE_S)
            return value
        except TimeoutError:
            components = [latest_of(workers).setup.component for workers in self._workers]
            self._stalled = diagnose(dict(enumerate(self.reports())), components, self._step_timeout_s)
            raise self._stalled from None

    def wait_loaded(self) -> None:
        if not self._wait_idle(self._startup_timeout_s):
            late = [rank for rank, pending in enumerate(self._pending) if pending]
            self._stalled = RankStalled(
                f"it was not ready within {self._startup_timeout_s:g} s; if it only needs longer, allow more with "
                "--startup-timeout",
                rank=late[0],
                component=latest_of(self._workers[late[0]]).setup.component,
            )
            raise self._stalled

    def _wait_idle(self, timeout_s: float) -> bool:
        """Wait until every rank's thread has done its commands, and raise their failures; False where time is up."""
        with self._idle:
            done = self._idle.wait_for(
                lambda: not any(self._pending) or self.workers[0].mailbox.failure is not None, timeout=timeout_s
            )
        self._check()
        return done

    def _check(self) -> None:
        if self._closed:
            raise EngineClosed("the engine has ended with the program")
        if self.workers[0].mailbox.failure is not None:
            raise self.workers[0].mailbox.failure

    def reports(self) -> list[Report]:
        return [report(workers) for workers in self._workers]

    def close(self) -> None:
        if os.getpid() != self._owner:
            return  # a child that the driver forked has none of the threads
        atexit.unregister(self.close)
        self._closed = True
        for queue in self._queues:
            queue.put(Stop())
        for workers in self._workers:
            workers[0].mailbox.close()
        if self._watch is not None:
            self._watch.close()
        until = time.monotonic() + (self._step_timeout_s if self._stalled is None else _GRACE_S)
        while self._running:
            rank = self._running[0]
            if not self._end(rank, until):
                component = latest_of(self._workers[rank]).setup.component
                why = f", after: {self._stalled}" if self._stalled else f" within {self._step_timeout_s:g} s"
                text = f"rank {rank} (component {component}) has not ended with its engine{why}"
                leave_behind(LeftBehind(self._threads.get(rank), self._streams[rank], text))
            else:
                for worker in self._workers[rank]:
                    worker.let_go()
            self._running.pop(0)

    def _end(self, rank: int, until: float) -> bool:
        """Wait for a rank's thread and device to end; False where they have not by then, in monotonic seconds."""
        thread = self._threads.get(rank)
        if thread is not None:
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive():
                return False
        with contextlib.suppress(RuntimeError):  # a GPU that failed has already raised in its rank
            return self._streams[rank].end(max(0.0, until - time.monotonic()))
        return True


def _stream_workers(setups: Sequence[Setups], streams: Sequence[DeviceStream]) -> list[list[Worker]]:
    peers: list[StreamMailbox] = []
    for stream in streams:
        peers.append(StreamMailbox(peers, stream))
    return [workers_of(own, mailbox) for own, mailbox in zip(setups, peers, strict=True)]
