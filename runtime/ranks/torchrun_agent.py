"""TorchrunAgent: runs in the process that torchrun has started for another rank than the driver's.

It serves the driver until the driver's program ends: for each engine it starts the rank's process, on a connection of
its own to the driver, and reports how that process ended. It is not torchrun's own elastic agent, which started it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from runtime.ranks import handshake
from runtime.ranks.launch import start_process
from runtime.ranks.torchrun_messages import (
    Attach,
    Begin,
    Begun,
    Compare,
    Ended,
    Goodbye,
    Introduction,
    Kill,
    Refused,
    Same,
)
from runtime.transport.rendezvous import driver_key, launcher_store
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
        contact = json.loads(launcher_store(timeout_s).get(driver_key()))
        agent = TorchrunAgent(rank, contact)
    except (OSError, RuntimeError) as error:
        _leave(1, f"rank {rank} does not reach the driver, rank 0: {error}")
    with contextlib.suppress(ValueError):  # in another thread than the main one
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, agent.on_signal)
    try:
        agent.obey()
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
        contact: the driver's address and key, see DriverServer.contact.

    Raises:
        OSError: the driver cannot be reached, or does not know the key.
    """

    def __init__(self, rank: int, contact: Mapping[str, Any]) -> None:
        self._rank = rank
        self._address = contact["host"], contact["port"]
        self._key = bytes.fromhex(contact["key"])
        self._lock = threading.Lock()
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._connection = self._connect()
        self._send(Introduction.own(rank))

    def _connect(self) -> Connection:
        return handshake.connect(self._address, self._key, _CONNECT_S)

    def _send(self, message: Any) -> None:
        with self._lock:
            self._connection.send(message)

    def obey(self) -> None:
        """Do what the driver asks until it says goodbye.

        Raises:
            EOFError, OSError: the connection to the driver ended without a goodbye.
        """
        while not isinstance(message := self._connection.recv(), Goodbye):
            if isinstance(message, Begin):
                self._begin(message.number)
            elif isinstance(message, Kill):
                self._kill([self._processes.get(message.number)])
            elif isinstance(message, Compare):
                threading.Thread(target=self._compare, args=(message,), daemon=True).start()

    def _begin(self, number: int) -> None:
        try:
            with self._connect() as connection:
                connection.send(Attach(self._rank, number))
                process = start_process(connection)
        except OSError as error:
            self._send(Refused(number, str(error)))
            return
        self._processes[number] = process
        self._send(Begun(number, process.pid))
        threading.Thread(target=self._await, args=(number, process), daemon=True).start()

    def _await(self, number: int, process: subprocess.Popen[bytes]) -> None:
        status = process.wait()
        del self._processes[number]
        with contextlib.suppress(OSError):
            self._send(Ended(number, status))

    def _compare(self, asked: Compare) -> None:
        same = [name for name, digest in asked.digests.items() if digest_of(asked.files[name], name) == digest]
        with contextlib.suppress(OSError):
            self._send(Same(frozenset(same)))

    def kill_all(self) -> None:
        """Kill every process that it has started."""
        self._kill(list(self._processes.values()))

    def _kill(self, processes: Sequence[subprocess.Popen[bytes] | None]) -> None:
        for process in processes:
            if process is not None:
                process.kill()

    def on_signal(self, number: int, _frame: Any) -> None:
        """Handle the signal by which torchrun ends what it has started."""
        self.kill_all()
        _leave(128 + number)
