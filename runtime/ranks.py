"""Ranks: starts the ranks other than the driver's, gives them commands, supervises and ends them.

Three kinds with one face: EmulatedRanks (one thread runs all in turn: the oracle of every test), ThreadRanks (one
thread each) and ProcessRanks (one process each, over gloo).
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

import torch

from runtime import errors
from runtime.serve import Ask, Failure, Ready, Report, Welcome, report, socket_pair
from runtime.torch_private import open_store
from runtime.transport import GlooMailbox, LocalMailbox
from runtime.worker import Build, Evaluate, Load, Setup, Stop, Work, Worker, run_to_end

T = TypeVar("T")


class Ranks(ABC):
    """The ranks of one engine. ``worker`` is rank 0's own, which lives in the driver's thread."""

    worker: Worker

    @abstractmethod
    def command(self, rank: int, command: Build | Load | Evaluate) -> None:
        """Tell a rank (not 0) what to do next; returns at once."""

    @abstractmethod
    def run(self, work: Work[T]) -> T:
        """Run rank 0's own work to its end while the others do theirs; raises their failures."""

    @abstractmethod
    def wait_loaded(self) -> None:
        """Wait until every rank has done the Load commands it was given."""

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
            raise errors.RankStalled(f"waits for {waiting[0]}, which no rank will send", rank=0)

    def reports(self) -> list[Report]:
        return [report(worker, 0) for worker in self._workers]

    def close(self) -> None:
        for worker in self._workers:
            worker.mailbox.close()
        self._queues = [deque() for _ in self._queues]


class ThreadRanks(Ranks):
    """One thread per rank; messages are handed over in memory."""

    def __init__(self, setups: Sequence[Setup], step_timeout_s: float) -> None:
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

    def command(self, rank: int, command: Build | Load | Evaluate) -> None:
        with self._idle:
            self._pending[rank] += 1
        self._queues[rank].put(command)

    def _serve(self, rank: int) -> None:
        worker = self._workers[rank]
        # a new thread has OpenMP's own default until it is told; another count could change the last bits
        torch.set_num_threads(self._torch_threads)
        try:
            while not isinstance(command := self._queues[rank].get(), Stop):
                work = _begin(worker, command)
                if work is not None:
                    run_to_end(work, worker.mailbox)
                with self._idle:
                    self._pending[rank] -= 1
                    self._idle.notify_all()
        except BaseException as error:
            for other in self._workers:
                other.mailbox.fail(error)
            with self._idle:
                self._idle.notify_all()

    def run(self, work: Work[T]) -> T:
        try:
            return run_to_end(work, self.worker.mailbox, self._step_timeout_s)
        except TimeoutError:
            raise _stalled(self.worker, self.reports()[1:], self._step_timeout_s) from None

    def wait_loaded(self) -> None:
        with self._idle:
            self._idle.wait_for(lambda: not any(self._pending) or self.worker.mailbox.failure is not None)
        if self.worker.mailbox.failure is not None:
            raise self.worker.mailbox.failure

    def reports(self) -> list[Report]:
        return [report(worker, 0) for worker in self._workers]

    def close(self) -> None:
        for queue in self._queues:
            queue.put(Stop())
        for worker in self._workers:
            worker.mailbox.close()
        for thread in self._threads:
            thread.join()


class ProcessRanks(Ranks):
    """One process per rank besides the driver's, started here, over gloo on the loopback interface.

    Supervision does not rest on the communication library: a connection that ends is a rank that ended, a rank
    that does not answer is stalled, and a rank that lost its driver ends itself.
    """

    HOST = "127.0.0.1"

    def __init__(
        self,
        setups: Sequence[Setup],
        *,
        plan_hash: int,
        threads: int,
        startup_timeout_s: float,
        step_timeout_s: float,
    ) -> None:
        self._setups = setups
        self._step_timeout_s = step_timeout_s
        self._startup_timeout_s = startup_timeout_s
        self._changed = threading.Condition()
        self._failure: errors.EngineError | None = None
        self._closing = False
        self._ready = [-1] * len(setups)
        self._loads = [0] * len(setups)
        self._answers: dict[int, Report] = {}
        self._asked = 0
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._connections: dict[int, Connection] = {}
        self._mailbox: GlooMailbox | None = None
        self._store = open_store((self.HOST, 0), timeout=timedelta(seconds=startup_timeout_s), serve=True)
        try:
            for setup in setups[1:]:
                welcome = Welcome(
                    setup, len(setups), (self.HOST, self._store.port), self.HOST, plan_hash, threads, startup_timeout_s
                )
                self._start(setup.rank, welcome)
            self._monitor = threading.Thread(target=self._watch, name="supervisor", daemon=True)
            self._monitor.start()
            self._connect(len(setups), plan_hash)
            self._wait_ready()
        except BaseException:
            self.close()
            raise

    def _start(self, rank: int, welcome: Welcome) -> None:
        ours, theirs = socket_pair()
        root = str(Path(__file__).resolve().parent.parent)
        environment = dict(os.environ)
        # -P keeps the current folder out of sys.path; our own packages must be found all the same
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
        with theirs:
            self._processes[rank] = subprocess.Popen(
                [sys.executable, "-P", "-m", "runtime.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=environment,
            )
        self._connections[rank] = ours
        ours.send(welcome)

    def _connect(self, world: int, plan_hash: int) -> None:
        """Join the gloo group. It may wait for ranks that died: then the supervisor's finding counts."""
        result: list[GlooMailbox | BaseException] = []

        def join() -> None:
            try:
                result.append(
                    GlooMailbox(
                        0,
                        world,
                        (self.HOST, self._store.port),
                        plan_hash=plan_hash,
                        host=self.HOST,
                        timeout_s=self._startup_timeout_s,
                        on_error=self._transport_failed,
                        store=self._store,
                    )
                )
            except BaseException as error:
                result.append(error)
            with self._changed:
                self._changed.notify_all()

        threading.Thread(target=join, name="join group", daemon=True).start()
        with self._changed:
            self._changed.wait_for(lambda: bool(result) or self._failure is not None, timeout=self._startup_timeout_s)
            if self._failure is not None:
                raise self._failure
        if not result or isinstance(result[0], BaseException):
            silent = [rank for rank in self._connections if self._ready[rank] < 0]
            raise errors.StartupError(
                f"ranks {silent} did not connect within {self._startup_timeout_s:g} s"
            ) from (result[0] if result else None)  # type: ignore[arg-type]
        self._mailbox = result[0]
        self.worker = Worker(self._setups[0], self._mailbox)

    def _wait_ready(self) -> None:
        deadline = self._startup_timeout_s

        def done() -> bool:
            return all(self._ready[rank] >= self._loads[rank] for rank in self._connections)

        with self._changed:
            there = self._changed.wait_for(lambda: done() or self._failure is not None, timeout=deadline)
            if self._failure is not None:
                raise self._failure
        if not there:
            slow = [rank for rank in self._connections if self._ready[rank] < self._loads[rank]]
            raise errors.StartupError(f"ranks {slow} were not ready within {deadline:g} s")

    def command(self, rank: int, command: Build | Load | Evaluate) -> None:
        self._raise_failure()
        if isinstance(command, Load):
            self._loads[rank] += 1
        try:
            self._connections[rank].send(command)
        except OSError:
            self._await_failure()

    def run(self, work: Work[T]) -> T:
        self._raise_failure()
        try:
            return run_to_end(work, self.worker.mailbox, self._step_timeout_s)
        except TimeoutError:
            answers = self._ask(timeout_s=1.0)
            stalled = _stalled(self.worker, [answers.get(rank) for rank in self._connections], self._step_timeout_s)
            self._fail(stalled)
            raise stalled from None

    def wait_loaded(self) -> None:
        self._wait_ready()

    def reports(self) -> list[Report]:
        answers = self._ask(timeout_s=5.0)
        self._raise_failure()
        return [report(self.worker, 0), *(answers[rank] for rank in sorted(answers))]

    def _ask(self, timeout_s: float) -> dict[int, Report]:
        """Rank -> its report, for the ranks that answer in time."""
        with self._changed:
            self._asked += 1
            number = self._asked
            self._answers = {}
        for connection in self._connections.values():
            with contextlib.suppress(OSError):
                connection.send(Ask(number))
        with self._changed:
            self._changed.wait_for(
                lambda: len(self._answers) == len(self._connections) or self._failure is not None, timeout=timeout_s
            )
            return {rank: answer for rank, answer in self._answers.items() if answer.number == number}

    def _watch(self) -> None:
        """Read what the ranks say; the end of a connection is the end of its rank."""
        rank_of = {connection: rank for rank, connection in self._connections.items()}
        while rank_of and not self._closing:
            for connection in wait(list(rank_of), timeout=0.5):
                assert isinstance(connection, Connection)
                rank = rank_of[connection]
                try:
                    self._hear(rank, connection.recv())
                except (EOFError, OSError):
                    del rank_of[connection]
                    self._ended(rank)

    def _hear(self, rank: int, message: Any) -> None:
        with self._changed:
            if isinstance(message, Ready):
                self._ready[rank] = message.loads
            elif isinstance(message, Report):
                self._answers[rank] = message
            self._changed.notify_all()
        if isinstance(message, Failure) and not message.transport:
            self._fail(_failure_of(rank, self._setups[rank].component, message))
        # a broken connection is the consequence of some rank's end: that end will be seen itself

    def _ended(self, rank: int) -> None:
        if self._closing:
            return
        process = self._processes[rank]
        try:
            status = process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            status = None
        if status == 1:
            time.sleep(0.3)  # ended by a peer's end or by its own report: let the first cause be heard
        how = f"was killed by signal {-status}" if status is not None and status < 0 else f"ended with status {status}"
        started = self._ready[rank] >= 0
        if started:
            self._fail(
                errors.RankDied(
                    f"its process {process.pid} {how}",
                    rank=rank,
                    component=self._setups[rank].component,
                    step=self.worker.steps_done if self._mailbox else None,
                )
            )
        else:
            self._fail(errors.StartupError(f"rank {rank}: its process {process.pid} {how} while starting"))

    def _transport_failed(self, error: BaseException) -> None:
        """From a transport thread: prefer what the supervisor finds about the rank behind it."""
        if isinstance(error, errors.EngineError):
            self._fail(error)
            return
        with self._changed:
            self._changed.wait_for(lambda: self._failure is not None or self._closing, timeout=1.5)
        if not self._closing:
            self._fail(errors.EngineError(str(error)))

    def _fail(self, error: errors.EngineError) -> None:
        """The first failure wins; everyone who waits is told."""
        with self._changed:
            if self._closing:
                return
            self._failure = self._failure or error
            self._changed.notify_all()
        if self._mailbox is not None:
            self._mailbox.fail(self._failure)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _await_failure(self) -> None:
        """A connection broke: wait for the supervisor to say why."""
        with self._changed:
            self._changed.wait_for(lambda: self._failure is not None, timeout=5)
        self._raise_failure()
        raise errors.EngineError("a connection to a rank broke")

    def close(self) -> None:
        self._closing = True
        for connection in self._connections.values():
            with contextlib.suppress(OSError):
                connection.send(Stop())
        deadline = time.monotonic() + 2.0
        for process in self._processes.values():
            try:
                process.wait(timeout=max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if hasattr(self, "_monitor"):
            self._monitor.join()
        for connection in self._connections.values():
            connection.close()
        self._connections = {}
        if self._mailbox is not None:
            self._mailbox.close()
        self._mailbox = self._store = None


def _local_workers(setups: Sequence[Setup]) -> list[Worker]:
    peers: list[LocalMailbox] = []
    for setup in setups:
        peers.append(LocalMailbox(setup.rank, peers, torch.device(setup.device)))
    return [Worker(setup, mailbox) for setup, mailbox in zip(setups, peers, strict=True)]


def _begin(worker: Worker, command: Build | Load | Evaluate) -> Work[Any] | None:
    if isinstance(command, Build):
        worker.build(command)
        return None
    return worker.load(command) if isinstance(command, Load) else worker.evaluate(command)


def _failure_of(rank: int, component: int, failure: Failure) -> errors.EngineError:
    kind = getattr(errors, failure.kind, errors.ComponentFailed)
    if not issubclass(kind, errors.ComponentFailed):
        if issubclass(kind, errors.RankError):
            error: errors.EngineError = kind(failure.message, rank=rank, component=component, step=failure.step)
            return error
        kind = errors.ComponentFailed
    return kind(
        failure.message,
        rank=rank,
        component=component,
        step=failure.step,
        node=failure.node,
        remote_traceback=failure.traceback,
    )


def _stalled(worker: Worker, answers: Sequence[Report | None], timeout_s: float) -> errors.RankStalled:
    """Name the rank that holds the others up: one that does not answer, else one that waits for nobody."""
    waiting = worker.waiting_for()
    what = f"the driver has waited {timeout_s:g} s" + (f" for %{waiting[0]} of component {waiting[1]}" if waiting else "")
    for rank, answer in enumerate(answers, start=1):
        if answer is None:
            return errors.RankStalled(f"it does not answer; {what}", rank=rank, step=worker.steps_done)
    for rank, answer in enumerate(answers, start=1):
        if answer is not None and answer.waiting_for is None:
            return errors.RankStalled(f"it computes for too long; {what}", rank=rank, step=worker.steps_done)
    return errors.RankStalled(f"every rank waits for another; {what}", rank=0, step=worker.steps_done)
