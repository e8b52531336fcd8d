"""serve: a rank's process; takes the driver's commands from a connection and ends with it."""

from __future__ import annotations

import os
import threading
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, NoReturn

import torch

from partitioner.process import keep_freed_memory
from runtime.devices.memory import read_in_libraries
from runtime.errors import EngineError, RankError
from runtime.ranks.rank_report import Report, report
from runtime.transport.gloo import GlooMailbox
from runtime.transport.mailbox import PeerLost
from runtime.transport.rendezvous import Rendezvous
from runtime.worker.commands import Build, Evaluate, Load, Setup, Stop
from runtime.worker.worker import Worker, run_to_end


@dataclass(frozen=True)
class Welcome:
    """The driver's first message to a process. host: the address whose network interface is used."""

    setup: Setup
    world: int
    plan_hash: int
    threads: int
    startup_timeout_s: float
    step_timeout_s: float
    host: str


@dataclass(frozen=True)
class Address:
    """Where a rank can be reached: an entry of the rendezvous, for all the others."""

    key: str
    value: bytes


@dataclass(frozen=True)
class Ready:
    """The rank is connected, or has done all Build and Load commands up to number ``loads``."""

    loads: int


@dataclass(frozen=True)
class Ask:
    """Ask for a Report; answered at once, even while the rank computes or waits."""

    number: int


@dataclass(frozen=True)
class Answer:
    """The answer to an Ask."""

    number: int
    report: Report


@dataclass(frozen=True)
class Failed:
    """The rank failed and is ending."""

    error: EngineError


@dataclass(frozen=True)
class Lost:
    """The connection to another rank broke; which rank is to blame is the driver's to find out."""

    peer: int
    text: str


def serve(connection: Connection) -> NoReturn:
    """Take commands until Stop, or the end of the connection; then end the process."""
    try:
        welcome: Welcome = connection.recv()
    except (EOFError, OSError):
        os._exit(1)
    rank = _Rank(connection, welcome)
    try:
        rank.connect()
        rank.obey()
        os._exit(0)
    except PeerLost:
        threading.Event().wait()  # reported already; until the driver ends this process
    except BaseException as error:
        rank.fail(error)
    os._exit(1)


class _Rank:
    """The rank of this process: commands in, words out."""

    def __init__(self, connection: Connection, welcome: Welcome) -> None:
        self._connection = connection
        self._welcome = welcome
        self._lock = threading.Lock()
        self._commands: SimpleQueue[Build | Load | Evaluate | Stop] = SimpleQueue()
        self._rendezvous = Rendezvous(lambda k, v: self._say(Address(k, v)), welcome.startup_timeout_s)
        self._mailbox: GlooMailbox | None = None
        self._worker: Worker | None = None
        keep_freed_memory()
        if welcome.threads:
            torch.set_num_threads(welcome.threads)
        read_in_libraries()  # what this process grows by from here on is its rank's
        threading.Thread(target=self._listen, name="commands", daemon=True).start()

    def connect(self) -> None:
        """Meet the other ranks."""
        setup = self._welcome.setup
        self._mailbox = GlooMailbox(
            setup.rank,
            self._welcome.world,
            self._rendezvous,
            plan_hash=self._welcome.plan_hash,
            host=self._welcome.host,
            timeout_s=self._welcome.startup_timeout_s,
            announce_timeout_s=self._welcome.step_timeout_s,
            on_error=self._transport_failed,
        )
        self._worker = Worker(setup, self._mailbox)
        self._say(Ready(0))

    def obey(self) -> None:
        """Do what is commanded, in order, until Stop."""
        assert self._worker is not None
        worker, loads = self._worker, 0
        while not isinstance(command := self._commands.get(), Stop):
            if isinstance(command, Evaluate):
                run_to_end(worker.evaluate(command), worker.mailbox)
            elif isinstance(command, Build):
                worker.build(command)
            else:
                run_to_end(worker.load(command), worker.mailbox)
                loads += 1
                self._say(Ready(loads))

    def fail(self, error: BaseException) -> NoReturn:
        """Tell the driver why this process ends, and end it."""
        setup = self._welcome.setup
        if not isinstance(error, EngineError):
            step = self._worker.step if self._worker is not None else None
            wrapped = RankError(f"{type(error).__name__}: {error}", rank=setup.rank, step=step)
            wrapped.__cause__ = error
            error = wrapped
        if isinstance(error, RankError):
            error.component = setup.component
            if error.__cause__ is not None:
                error.remote_traceback = "".join(traceback.format_exception(error.__cause__))
        try:
            self._say(Failed(error))
        finally:
            os._exit(1)

    def _transport_failed(self, error: BaseException) -> None:
        """From a transport thread."""
        if not isinstance(error, PeerLost):
            self.fail(error)
        if self._mailbox is not None:
            self._mailbox.fail(error)
        self._say(Lost(error.peer, str(error)))

    def _say(self, message: Any) -> None:
        try:
            with self._lock:
                self._connection.send(message)
        except OSError:
            os._exit(1)  # the driver is gone

    def _listen(self) -> None:
        """Queue commands, answer questions at once, and end the process when the driver says so or is gone."""
        try:
            while not isinstance(message := self._connection.recv(), Stop):
                if isinstance(message, Address):
                    self._rendezvous.put(message.key, message.value)
                elif isinstance(message, Ask):
                    if self._worker is not None:
                        self._say(Answer(message.number, report(self._worker)))
                else:
                    self._commands.put(message)
        except (EOFError, OSError):
            os._exit(1)
        except BaseException as error:
            self.fail(error)
        os._exit(0)
