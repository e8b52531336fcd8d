"""serve: the work of a rank's process: obey the driver's commands, answer its questions, and end with it.

Two threads: the main one does what is commanded, in order; another takes the driver's messages, so that questions are
answered and the end of the driver is noticed while the rank computes or waits.
"""

from __future__ import annotations

import os
import socket
import threading
import traceback
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, NoReturn

import torch

from partitioner.process import keep_freed_memory
from runtime.devices.memory import read_in_libraries
from runtime.devices.places import with_index
from runtime.devices.torch_settings import apply_settings
from runtime.errors import EngineError, RankError
from runtime.ranks.base import begin_work, workers_of
from runtime.ranks.rank_messages import Address, Adopt, Answer, Ask, Failed, Lost, Ready, Welcome
from runtime.ranks.rank_report import latest_of, report
from runtime.transport.checked import CheckedMailbox
from runtime.transport.connect import connected_mailbox
from runtime.transport.handshake import HostAndPort
from runtime.transport.mailbox import PeerLost
from runtime.transport.rendezvous import Rendezvous
from runtime.worker.commands import Load, RankCommand, Stop
from runtime.worker.waiting import run_to_end
from runtime.worker.worker import Worker


def serve(connection: Connection) -> NoReturn:
    """Obey the driver until it says Stop or its connection ends; then end the process."""
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
        threading.Event().wait()  # it is reported already; the driver will end this process
    except BaseException as error:
        rank.fail(error)
    os._exit(1)


class _Rank:
    """The rank of this process."""

    def __init__(self, connection: Connection, welcome: Welcome) -> None:
        self._connection = connection
        self._welcome = welcome
        self._lock = threading.Lock()
        self._commands: SimpleQueue[RankCommand | Adopt | Stop] = SimpleQueue()
        self._rendezvous = Rendezvous(self._announce, welcome.startup_timeout_s)
        self._mailbox: CheckedMailbox | None = None
        self._workers: list[Worker] = []
        keep_freed_memory()
        if welcome.threads:
            torch.set_num_threads(welcome.threads)
        read_in_libraries()  # so that what this process grows by from here on is due to its rank
        threading.Thread(target=self._listen, name="commands", daemon=True).start()

    def connect(self) -> None:
        """Connect to the other ranks."""
        setups = self._welcome.setups
        if torch.device(setups[0].device).type == "cuda":
            torch.cuda.set_device(with_index(setups[0].device))  # so that nothing is put on another one
        self._mailbox = connected_mailbox(
            setups[0].rank,
            self._welcome.world,
            {peer: _own(line) for peer, line in self._welcome.lines.items()},
            setups[0].device,
            self._rendezvous,
            plan_hash=self._welcome.plan_hash,
            host=self._welcome.host,
            secret=self._welcome.secret,
            announce_timeout_s=self._welcome.step_timeout_s,
            on_error=self._transport_failed,
        )
        self._workers = workers_of(setups, self._mailbox)
        self._send(Ready(0))

    def _announce(self, address: HostAndPort) -> None:
        self._send(Address(self._welcome.setups[0].rank, address))

    def obey(self) -> None:
        """Do what the driver commands, in order, until Stop."""
        assert self._mailbox is not None
        loads = 0
        while not isinstance(command := self._commands.get(), Stop):
            if isinstance(command, Adopt):
                apply_settings(command.settings)
                continue
            work = begin_work(self._workers, command)
            if work is not None:
                run_to_end(work, self._mailbox)
            if isinstance(command.command, Load):
                loads += 1
                self._send(Ready(loads))

    def fail(self, error: BaseException) -> NoReturn:
        """Tell the driver why this process ends, and end it."""
        worker = latest_of(self._workers) if self._workers else None
        setup = worker.setup if worker is not None else self._welcome.setups[0]
        if not isinstance(error, EngineError):
            step = worker.step if worker is not None else None
            wrapped = RankError(f"{type(error).__name__}: {error}", rank=setup.rank, step=step)
            wrapped.__cause__ = error
            error = wrapped
        if isinstance(error, RankError):
            error.component = setup.component
            if error.__cause__ is not None:
                error.remote_traceback = "".join(traceback.format_exception(error.__cause__))
        try:
            self._send(Failed(error))
        finally:
            os._exit(1)

    def _transport_failed(self, error: BaseException) -> None:
        """Called by the mailbox, from any thread."""
        if not isinstance(error, PeerLost):
            self.fail(error)
        if self._mailbox is not None:
            self._mailbox.fail(error)
        self._send(Lost(error.peer, str(error)))

    def _send(self, message: Any) -> None:
        try:
            with self._lock:
                self._connection.send(message)
        except OSError:
            os._exit(1)  # the driver is gone

    def _listen(self) -> None:
        """Queue commands, answer questions at once, and end the process when the driver says Stop or is gone."""
        try:
            while not isinstance(message := self._connection.recv(), Stop):
                if isinstance(message, Address):
                    self._rendezvous.put(message.rank, message.address)
                elif isinstance(message, Ask):
                    if self._workers:
                        self._send(Answer(message.number, report(self._workers)))
                else:
                    self._commands.put(message)
        except (EOFError, OSError):
            os._exit(1)
        except BaseException as error:
            self.fail(error)
        os._exit(0)


def _own(descriptor: int) -> socket.socket:
    """An inherited socket, which this process's own children do not inherit."""
    os.set_inheritable(descriptor, False)
    return socket.socket(fileno=descriptor)
