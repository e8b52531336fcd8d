"""serve: a worker process; takes the driver's commands from a connection and ends with it."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

import torch

from runtime.errors import ComponentFailed, MessageError
from runtime.transport import GlooMailbox
from runtime.worker import Build, Evaluate, Load, Setup, Stop, Worker, run_to_end


@dataclass(frozen=True)
class Welcome:
    """The driver's first message to a process. store: (host, port) of the rendezvous store."""

    setup: Setup
    world: int
    store: tuple[str, int]
    host: str
    plan_hash: int
    threads: int
    startup_timeout_s: float


@dataclass(frozen=True)
class Ask:
    """Ask for a Report; answered at once, even while the rank computes or waits."""

    number: int


@dataclass(frozen=True)
class Ready:
    """The rank is connected, or has done all Build and Load commands up to number ``loads``."""

    loads: int


@dataclass(frozen=True)
class Report:
    """What a rank is doing and has done. waiting_for: the value it waits for and the component that sends it."""

    number: int
    steps: int
    sent_bytes: int
    send_seconds: float
    wait_seconds: float
    parameter_bytes: int
    resident_bytes: int
    waiting_for: tuple[str, int | None] | None


@dataclass(frozen=True)
class Failure:
    """A rank failed and is ending. kind: the class of the error in runtime.errors; transport: a peer's fault."""

    kind: str
    message: str
    step: int | None
    node: str | None
    traceback: str
    transport: bool


def main() -> None:
    """Serve the connection whose file descriptor is the only argument; never returns."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the driver ends its ranks
    connection = Connection(int(sys.argv[1]))
    serve(connection, exit_process=os._exit)


def serve(connection: Connection, exit_process: Callable[[int], Any]) -> None:
    """Take commands until Stop or the end of the connection; then ``exit_process(status)``."""
    welcome = connection.recv()
    if welcome.threads:
        torch.set_num_threads(welcome.threads)
    lock = threading.Lock()

    def say(message: Any) -> None:
        with lock:
            connection.send(message)

    def transport_failed(error: BaseException) -> None:
        kind = type(error).__name__ if isinstance(error, MessageError) else "ConnectionError"
        report_failure(Failure(kind, str(error), None, None, "", transport=not isinstance(error, MessageError)))

    def report_failure(failure: Failure) -> None:
        try:
            say(failure)
        except OSError:
            pass  # the driver is gone as well
        finally:
            exit_process(1)

    try:
        mailbox = GlooMailbox(
            welcome.setup.rank,
            welcome.world,
            welcome.store,
            plan_hash=welcome.plan_hash,
            host=welcome.host,
            timeout_s=welcome.startup_timeout_s,
            on_error=transport_failed,
        )
        worker = Worker(welcome.setup, mailbox)
        commands: SimpleQueue[Any] = SimpleQueue()
        listener = threading.Thread(
            target=_listen, args=(connection, worker, commands, say, exit_process), name="commands", daemon=True
        )
        listener.start()
        say(Ready(0))
        _obey(worker, commands, say)
        exit_process(0)
    except BaseException as error:
        node, step = (error.node, error.step) if isinstance(error, ComponentFailed) else (None, None)
        cause = error.__cause__ or error
        text = "".join(traceback.format_exception(cause))
        report_failure(Failure(type(error).__name__, str(cause), step, node, text, transport=False))


def _obey(worker: Worker, commands: SimpleQueue[Any], say: Callable[[Any], None]) -> None:
    loads = 0
    while True:
        command = commands.get()
        if isinstance(command, Evaluate):
            run_to_end(worker.evaluate(command), worker.mailbox)
        elif isinstance(command, Build):
            worker.build(command)
        elif isinstance(command, Load):
            run_to_end(worker.load(command), worker.mailbox)
            loads += 1
            say(Ready(loads))
        elif isinstance(command, Stop):
            return
        else:
            raise TypeError(f"a rank cannot obey a {type(command).__name__}")


def _listen(
    connection: Connection,
    worker: Worker,
    commands: SimpleQueue[Any],
    say: Callable[[Any], None],
    exit_process: Callable[[int], Any],
) -> None:
    """Queue commands, answer questions at once, and end the process when the driver is gone."""
    try:
        while True:
            message = connection.recv()
            if isinstance(message, Ask):
                say(report(worker, message.number))
            elif isinstance(message, Stop):
                exit_process(0)
            else:
                commands.put(message)
    except (EOFError, OSError):
        exit_process(1)


def report(worker: Worker, number: int) -> Report:
    """What the worker is doing and has done."""
    parameter_bytes = sum(
        {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in list(worker.parameters.values())}.values()
    )
    return Report(
        number=number,
        steps=worker.steps_done,
        sent_bytes=worker.mailbox.sent_bytes,
        send_seconds=worker.mailbox.send_seconds,
        wait_seconds=worker.mailbox.wait_seconds,
        parameter_bytes=parameter_bytes,
        resident_bytes=resident_bytes(),
        waiting_for=worker.waiting_for(),
    )


def resident_bytes() -> int:
    """Resident memory of this process; 0 where the system does not say."""
    try:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def socket_pair() -> tuple[Connection, socket.socket]:
    """(the driver's end as a Connection, the worker's end to be inherited)."""
    ours, theirs = socket.socketpair()
    return Connection(ours.detach()), theirs
