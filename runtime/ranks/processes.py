"""ProcessRanks: one process per rank, started, commanded and ended by the driver.

Supervision does not rest on the communication library. Each rank has a connection to the driver: where it closes, the
rank has ended, and a rank whose driver's end closes ends itself. Commands go one way and reports the other, where a
thread listens (runtime.ranks.supervisor). The first failure wins, and everyone who waits is told of it
(runtime.ranks.failure).
"""

from __future__ import annotations

import atexit
import os
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

from partitioner.process import await_threads, keep_freed_memory
from runtime.devices.torch_settings import Settings, torch_settings
from runtime.errors import ConnectionBroke, EngineClosed, EngineError, RankStalled, StartupError
from runtime.ranks.base import Ranks, Setups, workers_of
from runtime.ranks.diagnosis import diagnose
from runtime.ranks.failure import Failure
from runtime.ranks.launch import Launcher
from runtime.ranks.rank_messages import Adopt, Ask, Welcome
from runtime.ranks.rank_report import Report, latest_of, report
from runtime.ranks.supervisor import RankHandle, Supervisor, announce
from runtime.transport.checked import CheckedMailbox
from runtime.transport.connect import connected_mailbox
from runtime.transport.handshake import KEY_BYTES
from runtime.transport.mailbox import PeerLost
from runtime.transport.packets import new_lines
from runtime.transport.rendezvous import Rendezvous
from runtime.transport.same_machine import SUPPORTED
from runtime.transport.weight_files import StoredTensor
from runtime.turns import EngineThread
from runtime.worker.commands import Load, RankCommand, Setup, Stop
from runtime.worker.waiting import Waiting, run_to_end

T = TypeVar("T")

_ANSWER_S = 1.0  # a rank that is not stopped answers in milliseconds
_GRACE_S = 2.0  # for an orderly end


class ProcessRanks(Ranks):
    """One process per rank besides the driver's.

    On one machine messages go through memory that processes share, between machines over TCP connections.

    Args:
        setups: by rank and denoiser; the first rank is the driver's own.
        launcher: starts the processes.
        plan_hash: the first bits of the plan's hash; messages of another plan are refused.
        threads: of torch in each process, 0 for torch's own choice.
        startup_timeout_s: from now, for all ranks to be connected and to have their parameters.
        step_timeout_s: for one step.

    Raises:
        StartupError: not every rank is connected in time, or one ended.
    """

    def __init__(
        self,
        setups: Sequence[Setups],
        launcher: Launcher,
        *,
        plan_hash: int,
        threads: int,
        startup_timeout_s: float,
        step_timeout_s: float,
    ) -> None:
        self._setups = setups
        self._launcher = launcher
        self._startup_timeout_s = startup_timeout_s
        self._step_timeout_s = step_timeout_s
        self._ready_by: float | None = time.monotonic() + startup_timeout_s
        self._owner = os.getpid()
        self._asked = 0
        self._settings: Settings = ()  # that the ranks compute by
        self._handles: dict[int, RankHandle] = {}
        self._lines: list[dict[int, socket.socket]] = []
        self._threads: list[threading.Thread] = []
        self._mailbox: CheckedMailbox | None = None
        self.workers = []
        self._rendezvous = Rendezvous(partial(announce, self._handles, 0), startup_timeout_s)
        secret = secrets.token_bytes(KEY_BYTES)
        self._failure = Failure()
        self._failure.add_listener(self._rendezvous.fail)
        atexit.register(self.close)
        keep_freed_memory()  # rank 0 computes in this process
        try:
            if launcher.same_machine and SUPPORTED:
                self._lines = new_lines(len(setups))
            for own in setups[1:]:
                welcome = partial(
                    Welcome, own, len(setups), plan_hash, threads, startup_timeout_s, step_timeout_s, secret
                )
                self._handles[own[0].rank] = self._begin_process(own[0], welcome)
            supervisor = Supervisor(self._handles, self._failure, self._rendezvous, self._step)
            self._begin_thread(supervisor.run, "supervisor")
            self._begin_thread(lambda: self._connect(plan_hash, secret), "connect")
            self._wait_until(self._is_connected, "connected")
            assert self._mailbox is not None
            self.workers = workers_of(setups[0], self._mailbox)
            self.wait_loaded()
        except OSError as error:
            self.close()
            raise StartupError(f"the ranks cannot be started: {error}") from error
        except BaseException:
            self.close()
            raise

    # ---- start

    def _begin_process(self, setup: Setup, welcome: Callable[[Mapping[int, int], str], Welcome]) -> RankHandle:
        """Start a rank's process.

        Args:
            setup: of the rank.
            welcome: its first message, but for its lines and the address that the process is to use.
        """
        lines = self._lines[setup.rank] if self._lines else {}
        numbers = {peer: line.fileno() for peer, line in lines.items()}
        try:
            launched = self._launcher.begin(setup.rank, self._startup_timeout_s, list(numbers.values()))
        except OSError as error:
            raise StartupError(f"rank {setup.rank}: its process cannot be started: {error}") from error
        finally:
            for line in lines.values():
                line.close()
        # a rank that is stopped does not read; then a write must end with an error instead of never
        seconds = min(self._startup_timeout_s, self._step_timeout_s)
        timeval = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
        launched.line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
        handle = RankHandle(setup, launched.process, Connection(launched.line.detach()))
        handle.tell(welcome(numbers, launched.host))  # where it has ended already, the supervisor will notice
        return handle

    def _begin_thread(self, target: Callable[[], None], name: str) -> None:
        thread = EngineThread(target, name)
        try:
            thread.start()
        except RuntimeError as error:  # there are too many
            raise StartupError(f"the ranks cannot be supervised: {error}") from error
        self._threads.append(thread)

    def _connect(self, plan_hash: int, secret: bytes) -> None:
        """Connect to the other ranks; in a thread of its own, since this may wait for a rank that died."""
        try:
            mailbox = connected_mailbox(
                0,
                len(self._setups),
                self._lines[0] if self._lines else {},
                self._setups[0][0].device,
                self._rendezvous,
                plan_hash=plan_hash,
                host=self._launcher.host,
                secret=secret,
                announce_timeout_s=self._step_timeout_s,
                on_error=self._transport_failed,
            )
        except StartupError as error:
            self._failure.suspect(error)
            return
        except Exception as error:
            self._failure.suspect(StartupError(f"the ranks cannot connect: {error}"))
            return
        with self._failure.changed:
            self._mailbox = mailbox
            self._failure.changed.notify_all()
        self._failure.add_listener(mailbox.fail)

    def _is_connected(self) -> bool:
        return self._mailbox is not None and all(handle.ready >= 0 for handle in self._handles.values())

    def _step(self) -> int | None:
        return latest_of(self.workers).step if self._mailbox is not None else None

    def _transport_failed(self, error: BaseException) -> None:
        """Called by the driver's mailbox, from any thread."""
        if isinstance(error, EngineError):
            self._failure.fail(error)
        else:
            self._failure.suspect(ConnectionBroke(str(error), rank=0, component=self._setups[0][0].component))

    def _wait_until(self, done: Callable[[], bool], what: str) -> None:
        """Wait for ``done``, a failure, or the start-up deadline; raises the last two."""
        ready_by = self._ready_by or time.monotonic() + self._startup_timeout_s
        if not self._failure.wait_for(done, ready_by - time.monotonic()):
            slow = [rank for rank, handle in self._handles.items() if handle.ready < handle.loads]
            named = f"rank {', rank '.join(map(str, slow))}" if slow else "a rank"
            self._failure.fail(
                StartupError(
                    f"{named} was not {what} within {self._startup_timeout_s:g} s; if it only needs longer, allow more "
                    "with --startup-timeout"
                )
            )
        self._failure.check()

    def wait_loaded(self) -> None:
        self._wait_until(lambda: all(handle.ready >= handle.loads for handle in self._handles.values()), "ready")
        if any(handle.loads for handle in self._handles.values()):
            self._ready_by = None  # started; a later graph has the whole time again

    # ---- work

    def _check_open(self) -> None:
        self._failure.check()
        if self._failure.closed:
            raise EngineClosed("the engine has ended with the program")

    def command(self, rank: int, command: RankCommand) -> None:
        self._check_open()
        handle = self._handles[rank]
        if isinstance(command.command, Load):
            handle.loads += 1
        if not handle.tell(command):
            self._failure.suspect(RankStalled("it takes no commands", rank=rank, component=handle.setup.component))
            self._failure.await_cause()

    def follow_settings(self) -> None:
        settings = torch_settings()
        if settings != self._settings:
            self._settings = settings
            for handle in self._handles.values():
                handle.tell(Adopt(settings))

    def readable(self, rank: int, stored: Mapping[str, StoredTensor]) -> dict[str, Path]:
        return self._launcher.readable(rank, stored, self._startup_timeout_s)

    def run(self, work: Waiting[T]) -> T:
        self._check_open()
        try:
            return run_to_end(work, self.workers[0].mailbox, self._step_timeout_s)
        except TimeoutError:
            current = self.workers.index(latest_of(self.workers))
            components = [own[current].component for own in self._setups]
            self._failure.fail(diagnose(self._ask(_ANSWER_S), components, self._step_timeout_s))
        except PeerLost:
            self._failure.await_cause()
        except EngineError as error:
            self._failure.fail(error)
        self._failure.check()
        raise EngineClosed("the engine was closed during a step")

    def reports(self) -> list[Report]:
        self._check_open()
        answers = self._ask(self._step_timeout_s)
        self._failure.check()
        missing = [handle.setup for rank, handle in self._handles.items() if rank not in answers]
        if missing:
            text = f"it does not answer within {self._step_timeout_s:g} s"
            self._failure.fail(RankStalled(text, rank=missing[0].rank, component=missing[0].component))
            self._failure.check()
        return [answers[rank] for rank in sorted(answers)]

    def _ask(self, timeout_s: float) -> dict[int, Report]:
        """Rank -> its report, for the ranks that answer in time, and the driver's own."""
        self._asked += 1
        number = self._asked
        for handle in self._handles.values():
            handle.tell(Ask(number))

        def answers() -> dict[int, Report]:
            return {r: h.answer.report for r, h in self._handles.items() if h.answer and h.answer.number == number}

        self._failure.wait_for(lambda: len(answers()) == len(self._handles), timeout_s)
        return {0: report(self.workers), **answers()}

    # ---- end

    def close(self) -> None:
        if os.getpid() != self._owner:
            return  # a child that the driver forked: the ranks are not its own
        self._failure.close()
        handles = list(self._handles.values())
        if self._failure.error is None:
            deadline = time.monotonic() + _GRACE_S
            for handle in handles:
                handle.tell(Stop())
            for handle in handles:
                handle.process.ending(timeout_s=max(0.0, deadline - time.monotonic()))
        for handle in handles:
            handle.process.kill()
        for handle in handles:
            handle.process.ending(timeout_s=_GRACE_S)
        self._rendezvous.fail(EngineError("the engine is closed"))
        await_threads(self._threads, _GRACE_S)
        if self._mailbox is not None:
            self._mailbox.close()
        for worker in self.workers:
            worker.let_go()
        for lines in self._lines:  # of ranks that were not started
            for line in lines.values():
                line.close()
        for handle in handles:
            handle.connection.close()
        atexit.unregister(self.close)
