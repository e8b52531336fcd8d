"""Pairs of mailboxes in one process that are connected as those of two processes are."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from partitioner.graph.nodes import TensorMeta
from runtime.transport.handshake import set_up
from runtime.transport.mailbox import Expected
from runtime.transport.mixed import MixedMailbox
from runtime.transport.packets import new_line
from runtime.transport.same_machine import SameMachineMailbox
from runtime.transport.sockets import SocketMailbox

HASH = 7


def meta(*shape: int, dtype: str = "float32") -> TensorMeta:
    return TensorMeta(shape, torch.empty(shape, device="meta").stride(), dtype)


WIRES = (
    Expected("a", meta(2, 3), (0,)),
    Expected("b", meta(2, 3), ()),  # not for rank 1
    Expected("c", meta(0, 3, dtype="bfloat16"), (0,)),
)


@contextmanager
def socket_pair(hashes: Sequence[int] = (HASH, HASH)) -> Iterator[tuple[Any, Any, list[Any]]]:
    """Two mailboxes connected by a TCP connection, and the errors that the second one has found."""
    with _connected(SocketMailbox, tcp_line(), hashes) as pair:
        yield pair


def tcp_line() -> tuple[socket.socket, socket.socket]:
    """The two ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        one = socket.create_connection(listening.getsockname())
        other, _ = listening.accept()
    for line in (one, other):
        set_up(line)
    return one, other


@contextmanager
def same_machine_pair(
    hashes: Sequence[int] = (HASH, HASH), devices: Sequence[str] = ("cpu", "cpu")
) -> Iterator[tuple[Any, Any, list[Any]]]:
    """Two mailboxes that share memory, and the errors that the second one has found."""

    def made(rank: int, lines: Any, **options: Any) -> SameMachineMailbox:
        return SameMachineMailbox(rank, lines, torch.device(devices[rank]), **options)

    with _connected(made, new_line(), hashes) as pair:
        yield pair


@contextmanager
def network_pair(
    hashes: Sequence[int] = (HASH, HASH), devices: Sequence[str] = ("cpu", "cpu")
) -> Iterator[tuple[Any, Any, list[Any]]]:
    """Two mailboxes of ranks on two machines, that can have others on their own; and the second one's errors."""

    def made(rank: int, lines: Any, **options: Any) -> MixedMailbox:
        return MixedMailbox(rank, {}, lines, torch.device(devices[rank]), **options)

    with _connected(made, tcp_line(), hashes) as pair:
        yield pair


@contextmanager
def _connected(
    made: Callable[..., Any], line: Sequence[socket.socket], hashes: Sequence[int]
) -> Iterator[tuple[Any, Any, list[Any]]]:
    errors: list[BaseException] = []

    def found(error: BaseException) -> None:
        errors.append(error)
        boxes[1].fail(error)

    boxes: list[Any] = []
    for rank, end in enumerate(line):
        on_error = found if rank else lambda error: None
        boxes.append(made(rank, {1 - rank: end}, plan_hash=hashes[rank], announce_timeout_s=0.3, on_error=on_error))
    for box in boxes:
        box.register(0, WIRES)
    try:
        yield boxes[0], boxes[1], errors
    finally:
        for box in boxes:
            box.close()


def channel_to(box: Any, peer: int) -> Any:
    """A mailbox's channel to another rank."""
    held = (box, getattr(box, "_peers", None), getattr(box, "_far", None))
    (found,) = (each._channels[peer] for each in held if peer in getattr(each, "_channels", ()))
    return found


PAIRS = {"sockets": socket_pair, "same machine": same_machine_pair, "mixed": network_pair}
