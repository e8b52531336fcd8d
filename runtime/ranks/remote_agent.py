"""RemoteAgent, RemoteProcess: a torchrun agent, and a process that it has started, as the driver sees them."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading

from profiles.records import Record
from runtime.ranks.launch import status_in_words
from runtime.ranks.torchrun_messages import (
    Begun,
    Ended,
    FromAgent,
    Introduction,
    Kill,
    MessageLine,
    NoMessage,
    Refused,
    Same,
)
from runtime.transport.handshake import shut_down

_log = logging.getLogger("runtime")


class RemoteAgent:
    """What the driver knows of an agent; ``str`` names its process.

    ``changed`` guards and announces what follows. pids, refusals, statuses: of processes, by number, that it has
    started, could not start, and that have ended. same: its answer to the last Compare. lost: its connection ended.
    """

    def __init__(self, line: MessageLine[FromAgent], introduction: Introduction) -> None:
        self.introduction = introduction
        self.changed = threading.Condition()
        self.pids: dict[int, int] = {}
        self.refusals: dict[int, str] = {}
        self.statuses: dict[int, int | None] = {}
        self.same: frozenset[str] | None = None
        self.lost = False
        self.processes: dict[int, RemoteProcess] = {}  # whose connections are open
        self._line = line

    def __str__(self) -> str:
        return f"{self.introduction.pid} on {self.introduction.machine[0]}"

    def tell(self, message: Record) -> None:
        """Send a message; one that cannot be sent is dropped, since ``listen`` notices the end of the connection."""
        with contextlib.suppress(OSError):
            self._line.send(message)

    def listen(self) -> None:
        """Take its messages until its connection ends; then cut the connections of its processes."""
        try:
            while True:
                self._take(self._line.receive())
        except NoMessage as error:
            _log.warning("rank %d's process %s is given up: %s", self.introduction.rank, self, error)
        except (EOFError, OSError):
            pass
        self._line.close()
        with self.changed:
            self.lost = True
            self.changed.notify_all()
        for process in list(self.processes.values()):
            process.cut()

    def _take(self, message: FromAgent) -> None:
        with self.changed:
            if isinstance(message, Begun):
                self.pids[message.number] = message.pid
            elif isinstance(message, Refused):
                self.refusals[message.number] = message.text
            elif isinstance(message, Ended):
                self.statuses[message.number] = message.status
            elif isinstance(message, Same):
                self.same = message.tensors
            self.changed.notify_all()


class RemoteProcess:
    """A process that an agent has started (a launch.RankProcess); ``str`` names it."""

    def __init__(self, agent: RemoteAgent, number: int, line: socket.socket) -> None:
        self._agent = agent
        self._number = number
        self._line = line.dup()
        agent.processes[number] = self

    def __str__(self) -> str:
        return f"{self._agent.pids[self._number]} on {self._agent.introduction.machine[0]}"

    def ending(self, timeout_s: float = 0.0) -> str | None:
        """How it ended, in words; None if it has not ended ``timeout_s`` from now."""
        agent, number = self._agent, self._number
        with agent.changed:
            agent.changed.wait_for(lambda: number in agent.statuses or agent.lost, timeout=timeout_s)
            if number in agent.statuses:
                return status_in_words(agent.statuses[number])
        return f"ended with the process that torchrun had started for it ({agent})" if agent.lost else None

    def kill(self) -> None:
        """End it, at once and whatever it does."""
        if self.ending() is None:
            self._agent.tell(Kill(number=self._number))
        self.cut()

    def cut(self) -> None:
        """End its connection; the process ends itself when it notices."""
        if self._agent.processes.pop(self._number, None) is not None:
            shut_down(self._line)
            self._line.close()
