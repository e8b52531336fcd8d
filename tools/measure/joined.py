"""joined: processes of this machine whose mailboxes are connected as those of an engine's ranks are."""

from __future__ import annotations

import multiprocessing
import socket
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from runtime.errors import EngineError
from runtime.transport.checked import CheckedMailbox
from runtime.transport.handshake import set_up
from runtime.transport.mailbox import Expected
from runtime.transport.packets import new_lines
from runtime.transport.same_machine import SameMachineMailbox
from runtime.transport.sockets import SocketMailbox

TIMEOUT_S = 60.0
RankWork = Callable[[CheckedMailbox], Any]


def joined(work: RankWork, wires: Sequence[Expected], *, ranks: int = 2, tcp: bool = False) -> list[Any]:
    """What ``work`` returns in each of some processes, by rank.

    Args:
        work: gets the process's mailbox; a function that can be pickled, as what it returns.
        wires: what the messages of table 0 are.
        ranks: how many processes there are; two, if they talk over TCP.
        tcp: whether they do, and not through memory that they share.

    Raises:
        EngineError: a process failed or has not answered for a minute.
    """
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(ranks)]
    lines = _tcp_lines() if tcp else new_lines(ranks)
    processes = [
        context.Process(target=_rank, args=(rank, lines[rank], pipes[rank][1], work, wires), daemon=True)
        for rank in range(ranks)
    ]
    for process, (_, theirs), ends in zip(processes, pipes, lines, strict=True):
        process.start()
        theirs.close()
        for end in ends.values():
            end.close()
    found: dict[int, Any] = {}
    running = {ours: rank for rank, (ours, _) in enumerate(pipes)}
    try:
        while running:
            ready = wait(list(running), timeout=TIMEOUT_S)
            if not ready:
                raise EngineError(f"no rank has said anything for {TIMEOUT_S:g} s")
            for ours in ready:
                assert isinstance(ours, Connection)
                try:
                    found[running[ours]] = ours.recv()
                except EOFError:
                    raise EngineError("a rank ended before it was measured") from None
                del running[ours]
        for ours, _ in pipes:
            ours.send(None)  # everyone is done: a mailbox may close now
        for process in processes:
            process.join(timeout=TIMEOUT_S)
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
    return [found[rank] for rank in range(ranks)]


def _tcp_lines() -> list[dict[int, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        one = socket.create_connection(listening.getsockname())
        other, _ = listening.accept()
    for line in (one, other):
        set_up(line)
    return [{1: one}, {0: other}]


def _rank(
    rank: int, lines: Mapping[int, socket.socket], pipe: Connection, work: RankWork, wires: Sequence[Expected]
) -> None:
    torch.set_num_threads(1)

    def fail(error: BaseException) -> None:
        mailbox.fail(error)

    mailbox: CheckedMailbox
    if next(iter(lines.values())).family == socket.AF_UNIX:
        cpu = torch.device("cpu")
        mailbox = SameMachineMailbox(rank, lines, cpu, plan_hash=0, announce_timeout_s=TIMEOUT_S, on_error=fail)
    else:
        mailbox = SocketMailbox(rank, lines, plan_hash=0, announce_timeout_s=TIMEOUT_S, on_error=fail)
    mailbox.register(0, wires)
    pipe.send(work(mailbox))
    pipe.recv()
    mailbox.close()
