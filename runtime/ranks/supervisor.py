"""Supervisor: a thread of the driver that listens to the ranks' processes and notices how they end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from runtime.errors import ConnectionBroke, RankDied, RankError, StartupError
from runtime.ranks.failure import Failure
from runtime.ranks.launch import RankProcess
from runtime.ranks.rank_messages import Address, Answer, Failed, Lost, Ready
from runtime.transport.handshake import HostAndPort
from runtime.transport.rendezvous import Rendezvous
from runtime.worker.commands import Setup


@dataclass
class RankHandle:
    """What the driver knows of the process of one rank.

    setup: of its first worker. ready: how many Load commands the rank has done, -1 until it is connected to the others.
    loads: how many it was given. answer: its last one.
    """

    setup: Setup
    process: RankProcess
    connection: Connection
    ready: int = -1
    loads: int = 0
    answer: Answer | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def tell(self, message: Any) -> bool:
        """Send the rank a message; False where that is impossible."""
        try:
            with self._lock:
                self.connection.send(message)
        except OSError:
            return False
        return True


def announce(handles: Mapping[int, RankHandle], source: int, address: HostAndPort) -> None:
    """Tell the other ranks the address of rank ``source``."""
    for rank, handle in handles.items():
        if rank != source:
            handle.tell(Address(source, address))


class Supervisor:
    """Takes what the ranks send, and reports to ``failure`` when one fails or ends.

    Args:
        handles: by rank, without the driver's own; complete when ``run`` is called.
        failure: where failures go, and whose ``changed`` is notified of answers.
        rendezvous: takes the ranks' addresses.
        step: the driver's present step, for what is said of a rank that dies; None before the first.
    """

    def __init__(
        self,
        handles: Mapping[int, RankHandle],
        failure: Failure,
        rendezvous: Rendezvous,
        step: Callable[[], int | None],
    ) -> None:
        self._handles = handles
        self._failure = failure
        self._rendezvous = rendezvous
        self._step = step

    def run(self) -> None:
        """Listen until every rank has ended."""
        rank_of = {handle.connection: rank for rank, handle in self._handles.items()}
        while rank_of:
            for connection in wait(list(rank_of), timeout=self._failure.next_look_s()):
                assert isinstance(connection, Connection)
                rank = rank_of[connection]
                try:
                    self._take(rank, connection.recv())
                except (EOFError, OSError):
                    del rank_of[connection]
                    self._ended(rank)
                except Exception as error:
                    self._failure.fail(RankError(f"a message from it cannot be read: {error!r}", rank=rank))
            self._failure.settle()
            if self._failure.closed and all(handle.process.ending() for handle in self._handles.values()):
                return

    def _take(self, rank: int, message: Any) -> None:
        handle = self._handles[rank]
        if isinstance(message, Address):
            self._rendezvous.put(rank, message.address)
            announce(self._handles, rank, message.address)
        elif isinstance(message, Failed):
            self._failure.fail(message.error)
        elif isinstance(message, Lost):
            self._failure.suspect(ConnectionBroke(message.text, rank=rank, component=handle.setup.component))
        else:
            with self._failure.changed:
                if isinstance(message, Ready):
                    handle.ready = message.loads
                elif isinstance(message, Answer):
                    handle.answer = message
                self._failure.changed.notify_all()

    def _ended(self, rank: int) -> None:
        """The rank's end of its connection has closed: say how its process ended."""
        if self._failure.closed or self._failure.error is not None:
            return
        handle = self._handles[rank]
        how = handle.process.ending(timeout_s=1.0) or "closed its connection"
        if handle.ready < 0:
            self._failure.fail(StartupError(f"rank {rank}: its process {handle.process} {how} while starting"))
            return
        text = f"its process {handle.process} {how}"
        self._failure.fail(RankDied(text, rank=rank, component=handle.setup.component, step=self._step()))
