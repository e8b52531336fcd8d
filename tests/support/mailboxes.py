"""Pairs of mailboxes in one process that are connected as those of two processes are."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from partitioner.graph.ir import TensorMeta
from runtime.transport.gloo import GlooMailbox
from runtime.transport.mailbox import Expected
from runtime.transport.packets import new_line
from runtime.transport.rendezvous import Rendezvous
from runtime.transport.same_machine import SameMachineMailbox

HASH = 7


def meta(*shape: int, dtype: str = "float32") -> TensorMeta:
    return TensorMeta(shape, torch.empty(shape, device="meta").stride(), dtype)


WIRES = (
    Expected("a", meta(2, 3), (0,)),
    Expected("b", meta(2, 3), ()),  # not for rank 1
    Expected("c", meta(0, 3, dtype="bfloat16"), (0,)),
)


@contextmanager
def gloo_pair(hashes: Sequence[int] = (HASH, HASH), connect_s: float = 20.0) -> Iterator[tuple[Any, Any, list[Any]]]:
    """Two mailboxes connected over gloo, and the errors that the second one has found."""
    errors: list[BaseException] = []
    sockets = _sockets()
    meeting: list[Rendezvous] = []
    for other in (1, 0):
        meeting.append(Rendezvous(lambda key, value, other=other: meeting[other].put(key, value), connect_s))
    boxes: dict[int, GlooMailbox] = {}

    def connect(rank: int) -> None:
        def found(error: BaseException) -> None:
            if rank == 1:
                errors.append(error)
                boxes[1].fail(error)

        boxes[rank] = GlooMailbox(
            rank, 2, meeting[rank], plan_hash=hashes[rank], host="127.0.0.1", timeout_s=connect_s,
            announce_timeout_s=0.3, on_error=found,
        )  # fmt: skip

    threads = [threading.Thread(target=connect, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for box in boxes.values():
        box.register(0, WIRES)
    try:
        yield boxes[0], boxes[1], errors
    finally:
        for box in boxes.values():
            box._closing = True
        for descriptor in _sockets() - sockets:  # as the end of a process would do
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as connection:
                connection.getpeername()  # not those that listen
                connection.shutdown(socket.SHUT_RDWR)
        for box in boxes.values():
            box.close()


def _sockets() -> set[int]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                found.add(int(name))
    return found


@contextmanager
def same_machine_pair(
    hashes: Sequence[int] = (HASH, HASH), connect_s: float = 20.0
) -> Iterator[tuple[Any, Any, list[Any]]]:
    """Two mailboxes that share memory, and the errors that the second one has found."""
    errors: list[BaseException] = []

    def found(error: BaseException) -> None:
        errors.append(error)
        boxes[1].fail(error)

    boxes = [
        SameMachineMailbox(
            rank, {1 - rank: line}, torch.device("cpu"), plan_hash=hashes[rank], announce_timeout_s=0.3,
            on_error=found if rank else lambda error: None,
        )
        for rank, line in enumerate(new_line())
    ]  # fmt: skip
    for box in boxes:
        box.register(0, WIRES)
    try:
        yield boxes[0], boxes[1], errors
    finally:
        for box in boxes:
            box.close()


PAIRS = {"gloo": gloo_pair, "same machine": same_machine_pair}
