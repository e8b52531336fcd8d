"""ProcessRanks: one process per rank, supervised and ended by the driver.

Supervision does not rest on the communication library. Each rank has a connection to the driver: where it closes, the
rank has ended, and a rank whose driver's end closes ends itself. Commands go one way, words the other way; a thread,
the supervisor, listens. The first failure wins, and everyone who waits is told of it.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from partitioner.process import keep_freed_memory
from runtime import errors
from runtime.ranks.base import Ranks
from runtime.ranks.launch import Launcher, RankProcess
from runtime.ranks.rank_main import Address, Answer, Ask, Failed, Lost, Ready, Welcome
from runtime.ranks.rank_report import Report, diagnose, report
from runtime.transport.gloo import GlooMailbox
from runtime.transport.mailbox import PeerLost
from runtime.transport.rendezvous import Rendezvous
from runtime.worker.commands import Build, Evaluate, Load, Setup, Stop
from runtime.worker.worker import Waiting, Worker, run_to_end

T = TypeVar("T")

_ANSWER_S = 1.0  # a rank that is not stopped answers in milliseconds
_BLAME_S = 1.0  # how long the end of a process may be noticed after its connections broke
_GRACE_S = 2.0  # for an orderly end


@dataclass
class _Seat:
    """What the driver knows of one rank. ready: Loads done, -1 until it is connected; loads: Loads commanded."""

    process: RankProcess
    connection: Connection
    lock: threading.Lock
    ready: int = -1
    loads: int = 0
    answer: Answer | None = None


class ProcessRanks(Ranks):
    """One process per rank besides the driver's, over gloo.

    Raises StartupError when not every rank is connected and has its parameters ``startup_timeout_s`` from now.
    """

    def __init__(
        self,
        setups: Sequence[Setup],
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
        self._changed = threading.Condition()
        self._failure: errors.EngineError | None = None
        self._suspected: list[tuple[float, errors.EngineError]] = []  # to be the failure, if none is found until then
        self._closing = False
        self._asked = 0
        self._seats: dict[int, _Seat] = {}
        self._threads: list[threading.Thread] = []
        self._mailbox: GlooMailbox | None = None
        self._rendezvous = Rendezvous(self._announce, startup_timeout_s)
        atexit.register(self.close)
        keep_freed_memory()  # rank 0 computes in this process
        try:
            for setup in setups[1:]:
                welcome = partial(Welcome, setup, len(setups), plan_hash, threads, startup_timeout_s, step_timeout_s)
                self._seats[setup.rank] = self._begin_process(setup, welcome)
            self._begin_thread(self._supervise, "supervisor")
            self._begin_thread(lambda: self._connect(plan_hash), "connect")
            self._until(lambda: self._mailbox is not None, "connected")
            assert self._mailbox is not None
            self.worker = Worker(setups[0], self._mailbox)
            self.wait_loaded()
        except BaseException:
            self.close()
            raise

    # ---- start

    def _begin_process(self, setup: Setup, welcome: Callable[[str], Welcome]) -> _Seat:
        try:
            launched = self._launcher.begin(setup.rank, self._startup_timeout_s)
        except OSError as error:
            raise errors.StartupError(f"rank {setup.rank}: its process cannot be started: {error}") from error
        # a rank that is stopped does not read; then a write must end with an error instead of never
        seconds = min(self._startup_timeout_s, self._step_timeout_s)
        launched.line.setsockopt(
            socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
        )  # fmt: skip
        seat = _Seat(launched.process, Connection(launched.line.detach()), threading.Lock())
        with contextlib.suppress(OSError):  # its end will be noticed
            seat.connection.send(welcome(launched.host))
        return seat

    def _begin_thread(self, target: Callable[[], None], name: str) -> None:
        thread = threading.Thread(target=target, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _connect(self, plan_hash: int) -> None:
        """Meet the other ranks; in a thread of its own, since this may wait for a rank that died."""
        try:
            mailbox = GlooMailbox(
                0,
                len(self._setups),
                self._rendezvous,
                plan_hash=plan_hash,
                host=self._launcher.host,
                timeout_s=self._startup_timeout_s,
                announce_timeout_s=self._step_timeout_s,
                on_error=self._transport_failed,
            )
        except Exception as error:
            self._suspect(errors.StartupError(f"the ranks cannot connect: {error}"))
            return
        with self._changed:
            self._mailbox = mailbox
            self._changed.notify_all()

    def _announce(self, key: str, value: bytes, source: int = 0) -> None:
        """Give one rank's address to the others."""
        for rank, seat in self._seats.items():
            if rank != source:
                self._tell(seat, Address(key, value))

    def _until(self, done: Callable[[], bool], what: str) -> None:
        """Wait for ``done``, a failure, or the start-up deadline."""
        ready_by = self._ready_by or time.monotonic() + self._startup_timeout_s
        with self._changed:
            there = self._changed.wait_for(
                lambda: done() or self._failure is not None, timeout=max(0.0, ready_by - time.monotonic())
            )
        self._raise_failure()
        if not there:
            slow = [rank for rank, seat in self._seats.items() if seat.ready < seat.loads]
            named = f"rank {', rank '.join(map(str, slow))}" if slow else "a rank"
            self._fail(
                errors.StartupError(
                    f"{named} was not {what} within {self._startup_timeout_s:g} s; if it only needs longer, allow more "
                    "with --startup-timeout"
                )
            )
            self._raise_failure()

    def wait_loaded(self) -> None:
        self._until(lambda: all(seat.ready >= seat.loads for seat in self._seats.values()), "ready")
        if any(seat.loads for seat in self._seats.values()):
            self._ready_by = None  # started; a later graph has the whole time again

    # ---- work

    def command(self, rank: int, command: Build | Load | Evaluate) -> None:
        self._raise_failure()
        seat = self._seats[rank]
        if isinstance(command, Load):
            seat.loads += 1
        if not self._tell(seat, command):
            self._suspect(errors.RankStalled("it takes no commands", rank=rank, component=self._setups[rank].component))
            self._await_failure()

    def readable(self, rank: int, files: Mapping[str, Path]) -> dict[str, Path]:
        return self._launcher.readable(rank, files, self._startup_timeout_s)

    def run(self, work: Waiting[T]) -> T:
        self._raise_failure()
        try:
            return run_to_end(work, self.worker.mailbox, self._step_timeout_s)
        except TimeoutError:
            reports = self._ask(_ANSWER_S)
            self._fail(diagnose(reports, [setup.component for setup in self._setups], self._step_timeout_s))
        except PeerLost:
            self._await_failure()
        except errors.EngineError as error:
            self._fail(error)
        self._raise_failure()
        raise errors.EngineClosed("the engine was closed during a step")

    def reports(self) -> list[Report]:
        answers = self._ask(self._step_timeout_s)
        self._raise_failure()
        missing = [rank for rank in self._seats if rank not in answers]
        if missing:
            self._fail(
                errors.RankStalled(
                    f"it does not answer within {self._step_timeout_s:g} s",
                    rank=missing[0],
                    component=self._setups[missing[0]].component,
                )
            )
            self._raise_failure()
        return [answers[rank] for rank in sorted(answers)]

    def _ask(self, timeout_s: float) -> dict[int, Report]:
        """Rank -> its report, for the ranks that answer in time, and the driver's own."""
        self._asked += 1
        number = self._asked
        for seat in self._seats.values():
            self._tell(seat, Ask(number))

        def answers() -> dict[int, Report]:
            return {r: s.answer.report for r, s in self._seats.items() if s.answer and s.answer.number == number}

        with self._changed:
            self._changed.wait_for(
                lambda: len(answers()) == len(self._seats) or self._failure is not None, timeout=timeout_s
            )
            return {0: report(self.worker), **answers()}

    def _tell(self, seat: _Seat, message: Any) -> bool:
        try:
            with seat.lock:
                seat.connection.send(message)
        except OSError:
            return False
        return True

    # ---- supervision

    def _supervise(self) -> None:
        """Listen to the ranks until all have ended."""
        rank_of = {seat.connection: rank for rank, seat in self._seats.items()}
        while rank_of:
            for connection in wait(list(rank_of), timeout=self._patience()):
                assert isinstance(connection, Connection)
                rank = rank_of[connection]
                try:
                    self._hear(rank, connection.recv())
                except (EOFError, OSError):
                    del rank_of[connection]
                    self._ended(rank)
                except Exception as error:
                    self._fail(errors.RankError(f"it said what cannot be read: {error!r}", rank=rank))
            for due, suspected in list(self._suspected):
                if due <= time.monotonic():
                    self._fail(suspected)
            if self._closing and all(seat.process.ending() for seat in self._seats.values()):
                return

    def _patience(self) -> float:
        """How long to listen before the suspicions are looked at again."""
        if self._failure is not None or self._closing:
            return 0.5
        now = time.monotonic()
        return max(0.0, min([0.5, *(due - now for due, _ in self._suspected)]))

    def _hear(self, rank: int, message: Any) -> None:
        if isinstance(message, Address):
            self._rendezvous.put(message.key, message.value)
            self._announce(message.key, message.value, source=rank)
        elif isinstance(message, Failed):
            self._fail(message.error)
        elif isinstance(message, Lost):
            self._suspect(errors.ConnectionBroke(message.text, rank=rank, component=self._setups[rank].component))
        else:
            with self._changed:
                if isinstance(message, Ready):
                    self._seats[rank].ready = message.loads
                elif isinstance(message, Answer):
                    self._seats[rank].answer = message
                self._changed.notify_all()

    def _ended(self, rank: int) -> None:
        """The rank's end of its connection closed."""
        if self._closing or self._failure is not None:
            return
        seat = self._seats[rank]
        how = seat.process.ending(timeout_s=1.0) or "closed its connection"
        if seat.ready < 0:
            self._fail(errors.StartupError(f"rank {rank}: its process {seat.process} {how} while starting"))
            return
        step = self.worker.step if self._mailbox is not None else None
        self._fail(
            errors.RankDied(
                f"its process {seat.process} {how}", rank=rank, component=self._setups[rank].component, step=step
            )
        )

    def _transport_failed(self, error: BaseException) -> None:
        """From a transport thread of the driver."""
        if isinstance(error, errors.EngineError):
            self._fail(error)
        else:
            self._suspect(errors.ConnectionBroke(str(error), rank=0, component=self._setups[0].component))

    def _suspect(self, error: errors.EngineError) -> None:
        """This is the failure, unless its cause is noticed in a moment."""
        with self._changed:
            self._suspected.append((time.monotonic() + _BLAME_S, error))

    def _fail(self, error: errors.EngineError) -> None:
        """The first failure wins; everyone who waits is told."""
        with self._changed:
            if self._closing or self._failure is not None:
                return
            self._failure = error
            self._changed.notify_all()
        self._rendezvous.fail(error)
        if self._mailbox is not None:
            self._mailbox.fail(error)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _await_failure(self) -> NoReturn:
        """Something broke: the supervisor will say why."""
        with self._changed:
            self._changed.wait_for(lambda: self._failure is not None, timeout=5 * _BLAME_S)
        self._raise_failure()
        raise errors.EngineError("a connection to a rank broke")

    # ---- end

    def close(self) -> None:
        if os.getpid() != self._owner:
            return  # a child that the driver forked: the ranks are not its own
        with self._changed:
            self._closing = True
        if self._failure is None:
            deadline = time.monotonic() + _GRACE_S
            for seat in self._seats.values():
                self._tell(seat, Stop())
            for seat in self._seats.values():
                seat.process.ending(timeout_s=max(0.0, deadline - time.monotonic()))
        for seat in self._seats.values():
            seat.process.kill()
        for seat in self._seats.values():
            seat.process.ending(timeout_s=_GRACE_S)
        self._rendezvous.fail(errors.EngineError("the engine is closed"))
        for thread in self._threads:
            thread.join(timeout=_GRACE_S)
        if self._mailbox is not None:
            self._mailbox.close()
        for seat in self._seats.values():
            seat.connection.close()
        atexit.unregister(self.close)
