"""TorchrunAgent: runs in the process that torchrun has started for another rank than the driver's.

It serves the driver until the driver's program ends: for each engine it starts the rank's process, on a connection of
its own to the driver, and reports how that process ended. It is not torchrun's own elastic agent, which started it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from runtime.ranks.launch import LocalProcess, start_process
from runtime.ranks.torchrun_messages import (
    FROM_DRIVER,
    Begin,
    Begun,
    Compare,
    Ended,
    Goodbye,
    Introduction,
    Kill,
    MessageLine,
    NoMessage,
    Refused,
    Same,
)
from runtime.ranks.torchrun_store import SECRET_VARIABLE, Contact, find_contact
from runtime.transport.door import enter
from runtime.transport.handshake import break_where_unread
from runtime.transport.weight_files import digest_of

_CONNECT_S = 20.0  # for a connection to the driver, and again for its handshake


def run_agent(rank: int, timeout_s: float) -> NoReturn:
    """Serve the driver until its program ends, then end this process.

    The exit status is 0 where the driver said goodbye, and 1 where it cannot be reached or ended without.

    Args:
        rank: this process's rank, which is not 0.
        timeout_s: how long to wait for the driver to put its address into torchrun's store.
    """
    try:
        agent = TorchrunAgent(rank, find_contact(timeout_s))
    except (OSError, RuntimeError) as error:
        secret = f"; is {SECRET_VARIABLE} the same there?" if os.environ.get(SECRET_VARIABLE) else ""
        _leave(1, f"rank {rank} does not reach the driver, rank 0: {error}{secret}")
    with contextlib.suppress(ValueError):  # in another thread than the main one
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, agent.on_signal)
    try:
        agent.obey()
    except NoMessage as error:
        agent.kill_all()
        _leave(1, f"rank {rank} ends: from the driver, rank 0, {error}")
    except (EOFError, OSError):
        agent.kill_all()
        _leave(1, f"rank {rank} ends: the driver, rank 0, has ended without a word")
    agent.kill_all()
    _leave(0)


def _leave(status: int, text: str = "") -> NoReturn:
    """End this process at once; the interpreter's own end could be held up by what the script has imported."""
    if text:
        print(f"torchrun: {text}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class TorchrunAgent:
    """Starts, watches and kills one rank's processes for the driver.

    Args:
        rank: the rank whose processes it starts.
        contact: the driver's address and key.

    Raises:
        OSError: the driver cannot be reached, does not know the key, or has somebody else in this rank's place.
    """

    def __init__(self, rank: int, contact: Contact) -> None:
        self._host = contact.host
        self._processes: dict[int, LocalProcess] = {}
        self._driver = MessageLine(self._connect(contact.port, contact.job_key().proof, rank), FROM_DRIVER)
        self._driver.send(Introduction.own(rank))

    def _connect(self, port: int, key: bytes, seat: int) -> socket.socket:
        line = enter((self._host, port), key, seat, time.monotonic() + _CONNECT_S)
        break_where_unread(line)
        return line

    def obey(self) -> None:
        """Do what the driver asks until it says goodbye.

        Raises:
            NoMessage: the driver has sent something else.
            EOFError, OSError: the connection to the driver ended without a goodbye.
        """
        while not isinstance(message := self._driver.receive(), Goodbye):
            if isinstance(message, Begin):
                self._begin(message)
            elif isinstance(message, Kill):
                self._kill([self._processes.get(message.number)])
            elif isinstance(message, Compare):
                threading.Thread(target=self._compare, args=(message,), daemon=True).start()

    def _begin(self, asked: Begin) -> None:
        number = asked.number
        try:
            with self._connect(asked.port, bytes.fromhex(asked.key), number) as line:
                process = start_process(line)
        except OSError as error:
            self._driver.send(Refused(number=number, text=str(error)[:1000]))
            return
        begun = self._processes[number] = LocalProcess(process)
        self._driver.send(Begun(number=number, pid=process.pid))
        threading.Thread(target=self._await, args=(number, begun), daemon=True).start()

    def _await(self, number: int, process: LocalProcess) -> None:
        status = process.status()
        del self._processes[number]
        with contextlib.suppress(OSError):
            self._driver.send(Ended(number=number, status=status))

    def _compare(self, asked: Compare) -> None:
        files = asked.files
        same = [
            name for name, digest in asked.digests.items() if name in files and digest_of(files[name], name) == digest
        ]
        with contextlib.suppress(OSError):
            self._driver.send(Same(tensors=frozenset(same)))

    def kill_all(self) -> None:
        """Kill every process that it has started."""
        self._kill(list(self._processes.values()))

    def _kill(self, processes: Sequence[LocalProcess | None]) -> None:
        for process in processes:
            if process is not None:
                process.kill()

    def on_signal(self, number: int, _frame: Any) -> None:
        """Handle the signal by which torchrun ends what it has started."""
        self.kill_all()
        _leave(128 + number)
