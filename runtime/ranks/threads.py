"""ThreadRanks: one thread per rank, with a stream of its own on a GPU."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from queue import SimpleQueue
from typing import Any

import torch

from runtime.devices.acceleration import device_streams
from runtime.devices.cuda_stream import CudaDeviceStream
from runtime.devices.stream import DeviceStream
from runtime.errors import EngineError, RankError
from runtime.ranks.base import Ranks, Setups, T, begin_work, local_workers, workers_of
from runtime.ranks.diagnosis import diagnose
from runtime.ranks.rank_report import Report, latest_of, report
from runtime.transport.stream_mailbox import StreamMailbox
from runtime.worker.commands import RankCommand, Stop
from runtime.worker.waiting import Waiting, run_to_end
from runtime.worker.worker import Worker

CAPTURE_S = 10.0  # much longer than the capture of one rank's CUDA graphs takes


class ThreadRanks(Ranks):
    """One thread per rank; messages are passed on in memory, or copied from GPU to GPU.

    A rank on a GPU queues its work on streams of its own (runtime.devices.cuda_stream), so its thread does not wait for
    its kernels; the step deadline is for the threads.

    Args:
        setups: by rank and denoiser; the first rank is the driver's own.
        step_timeout_s: for one step.
        green_contexts: ranks that share a GPU get equal, disjoint shares of it.
    """

    def __init__(self, setups: Sequence[Setups], step_timeout_s: float, *, green_contexts: bool = False) -> None:
        self._streams = device_streams([own[0].device for own in setups], green_contexts=green_contexts)
        if any(isinstance(stream, CudaDeviceStream) for stream in self._streams):
            self._workers = _stream_workers(setups, self._streams)
        else:
            self._workers = local_workers(setups)
        self.workers = self._workers[0]
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
    def stream(self) -> DeviceStream:
        return self._streams[0]

    def command(self, rank: int, command: RankCommand) -> None:
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
            for others in self._workers:
                others[0].mailbox.fail(error)
            with self._idle:
                self._idle.notify_all()

    def run(self, work: Waiting[T]) -> T:
        try:
            value = run_to_end(work, self.workers[0].mailbox, self._step_timeout_s)
            if not all(worker.is_settled for workers in self._workers for worker in workers):
                # the caller must not use the device during the capture of a CUDA graph, see runtime.devices.cuda_graphs
                self._wait_idle(CAPTURE_S)
            return value
        except TimeoutError:
            components = [latest_of(workers).setup.component for workers in self._workers]
            raise diagnose(dict(enumerate(self.reports())), components, self._step_timeout_s) from None

    def wait_loaded(self) -> None:
        self._wait_idle()

    def _wait_idle(self, timeout_s: float | None = None) -> None:
        """Wait until every rank's thread has done its commands, or ``timeout_s`` is over; raises their failures."""
        with self._idle:
            self._idle.wait_for(
                lambda: not any(self._pending) or self.workers[0].mailbox.failure is not None, timeout=timeout_s
            )
        if self.workers[0].mailbox.failure is not None:
            raise self.workers[0].mailbox.failure

    def reports(self) -> list[Report]:
        return [report(workers) for workers in self._workers]

    def close(self) -> None:
        for queue in self._queues:
            queue.put(Stop())
        for workers in self._workers:
            workers[0].mailbox.close()
        for thread in self._threads:
            thread.join()
        for stream in self._streams:
            with contextlib.suppress(RuntimeError):  # a GPU that failed has already raised in its rank
                stream.synchronize()


def _stream_workers(setups: Sequence[Setups], streams: Sequence[DeviceStream]) -> list[list[Worker]]:
    peers: list[StreamMailbox] = []
    for stream in streams:
        peers.append(StreamMailbox(peers, stream))
    return [workers_of(own, mailbox) for own, mailbox in zip(setups, peers, strict=True)]
