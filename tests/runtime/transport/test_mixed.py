"""MixedMailbox: ranks 0 and 1 share memory, rank 2 is reached over sockets; who waits, waits for all of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from runtime.errors import EngineError, MessageError
from runtime.transport.mailbox import Expected, MessageKey, PeerLost
from runtime.transport.mixed import MixedMailbox
from runtime.transport.packets import new_line
from runtime.transport.sockets import SocketMailbox
from tests.support.mailboxes import HASH, meta, tcp_line
from tests.support.traces import nothing_left

WIRES = tuple(Expected(f"of {rank}", meta(2, 3), (rank,)) for rank in range(3))


@contextmanager
def three() -> Iterator[tuple[list[Any], list[BaseException]]]:
    """The mailboxes, by rank, and the errors that rank 0 has found."""
    errors: list[BaseException] = []

    def found(error: BaseException) -> None:
        errors.append(error)
        boxes[0].fail(error)

    options: dict[str, Any] = {"plan_hash": HASH, "announce_timeout_s": 0.3}
    here, (zero, zero_far), (one, one_far) = new_line(), tcp_line(), tcp_line()
    cpu = torch.device("cpu")
    boxes: list[Any] = [
        MixedMailbox(0, {1: here[0]}, {2: zero}, cpu, on_error=found, **options),
        MixedMailbox(1, {0: here[1]}, {2: one}, cpu, on_error=lambda error: None, **options),
        SocketMailbox(2, {0: zero_far, 1: one_far}, on_error=lambda error: None, **options),
    ]
    for box in boxes:
        box.register(0, WIRES)
    try:
        yield boxes, errors
    finally:
        for box in boxes:
            box.close()


def key(rank: int, step: int = 0) -> MessageKey:
    return MessageKey(0, rank, 0, step)


def value(rank: int, step: int = 0) -> torch.Tensor:
    return torch.full((2, 3), 10.0 * step + rank)


def test_everybody_reads_what_everybody_sends() -> None:
    with nothing_left(), three() as (boxes, errors):
        for step in range(20):
            for rank, box in enumerate(boxes):
                box.send([peer for peer in range(3) if peer != rank], key(rank, step), value(rank, step))
            for reader, box in enumerate(boxes):
                for rank in range(3):
                    if rank != reader:
                        box.wait(key(rank, step), timeout_s=5)
                        assert torch.equal(box.take(key(rank, step)), value(rank, step))
        assert not errors
        assert [box.sent_bytes for box in boxes] == [20 * 2 * 24] * 3
        assert [box.kept for box in boxes] == [0, 0, 0]


@pytest.mark.parametrize("sender", [1, 2])
def test_who_waits_is_woken_by_those_here_and_by_those_far(sender: int) -> None:
    with three() as (boxes, _):
        threading.Timer(0.05, boxes[sender].send, ([0], key(sender), value(sender))).start()
        begin = time.monotonic()
        boxes[0].wait(key(sender), timeout_s=60)
        assert time.monotonic() - begin < 30
        assert torch.equal(boxes[0].take(key(sender)), value(sender))


@pytest.mark.parametrize("ended", [1, 2])
def test_the_end_of_either_is_noticed_by_who_waits_for_the_other(ended: int) -> None:
    with three() as (boxes, errors):
        threading.Timer(0.05, boxes[ended].close).start()
        with pytest.raises(PeerLost):
            boxes[0].wait(key(3 - ended), timeout_s=60)
        assert isinstance(errors[0], PeerLost)
        assert errors[0].peer == ended


def test_who_waits_is_told_of_a_failure_and_of_the_end_of_time() -> None:
    with three() as (boxes, _):
        with pytest.raises(TimeoutError):
            boxes[0].wait(key(2), timeout_s=0.01)
        threading.Timer(0.05, boxes[0].fail, (EngineError("another rank has failed"),)).start()
        with pytest.raises(EngineError, match="another rank has failed"):
            boxes[0].wait(key(2), timeout_s=60)


def test_messages_of_far_ranks_are_checked_and_those_behind_a_step_refused() -> None:
    with three() as (boxes, _):
        boxes[2].send([0], key(2, 1), value(2))
        with pytest.raises(MessageError, match="%of 2 of step 1 came where that of step 0 belongs"):
            boxes[0].wait(key(2, 0), timeout_s=60)


def test_only_the_thread_that_waits_takes_messages_in() -> None:
    """So that what has arrived does not change while it looks."""
    count = 300
    with three() as (boxes, errors):
        deliver, by = boxes[0].deliver, set()

        def delivered(*message: Any) -> None:
            by.add(threading.current_thread())
            deliver(*message)

        boxes[0].deliver = delivered
        for step in range(count):
            boxes[2].send([0], key(2, step), value(2, step))
        for step in range(count):
            boxes[1].send([0], key(1, step), value(1, step))
            for rank in (1, 2):
                boxes[0].wait(key(rank, step), timeout_s=60)
                assert torch.equal(boxes[0].take(key(rank, step)), value(rank, step))
        assert by == {threading.current_thread()}
        assert not errors


def test_what_a_cpu_sends_over_sockets_lies_where_it_lay() -> None:
    with three() as (boxes, _):
        assert not boxes[0].copies_sent
