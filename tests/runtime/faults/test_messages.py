"""Messages that do not belong: refused by their header, between two mailboxes of one process and in an engine."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch

from partitioner.graph.nodes import TensorMeta
from runtime.engine import Engine
from runtime.errors import EngineError, MessageError
from runtime.transport.header import describe
from runtime.transport.mailbox import Expected, MessageKey
from tests.support.mailboxes import HASH, PAIRS, WIRES, channel_to, meta, socket_pair
from tests.support.trouble import call_until_it_fails, engine_for, fragile, plan_for, trajectory, wait_until


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_what_belongs_arrives_however_long_it_takes(pair: Any) -> None:
    """Fault 7."""
    with pair() as (sender, receiver, _):
        sent = torch.arange(6.0).view(3, 2).t()  # another memory order
        for step in range(3):
            time.sleep(1.2 if step == 1 else 0)
            sender.send([1], MessageKey(0, 0, 0, step), sent + step)
            sender.send([1], MessageKey(0, 2, 0, step), torch.empty(0, 3, dtype=torch.bfloat16))
            for wire, wanted in ((0, sent + step), (2, torch.empty(0, 3))):
                receiver.wait(MessageKey(0, wire, 0, step), timeout_s=5)
                taken = receiver.take(MessageKey(0, wire, 0, step))
                assert torch.equal(taken.float(), wanted)
                assert taken.stride() == wanted.stride()
        assert receiver.kept == 0


def test_a_sender_never_waits_for_the_reader_and_keeps_nothing_that_is_sent() -> None:
    """More than a connection's buffers hold; the payload of the second message waits for a table until it is there."""
    with socket_pair() as (sender, receiver, errors):
        wires = [Expected("large", meta(2**23), (0,))]
        sender.register(1, wires)
        begin = time.monotonic()
        for step in range(3):
            sender.send([1], MessageKey(1, 0, 0, step), torch.full((2**23,), float(step)))
        assert time.monotonic() - begin < 5
        assert channel_to(sender, 1).kept
        receiver.register(1, wires)
        for step in range(3):
            receiver.wait(MessageKey(1, 0, 0, step), timeout_s=5)
            assert receiver.take(MessageKey(1, 0, 0, step)).eq(step).all()
        wait_until(lambda: not channel_to(sender, 1).kept)
        _steps(*range(100))(sender)
        _take(receiver, range(100))
        assert not errors


def test_a_connection_that_breaks_within_a_message_leaves_nothing_waiting() -> None:
    """The payload is half written: its reader waits for a table that does not come. The fixture checks what is left."""
    with socket_pair() as (sender, receiver, _):
        sender.register(9, [Expected("large", meta(2**24), (0,))])
        sender.send([1], MessageKey(9, 0, 0, 0), torch.ones(2**24))
        begin = time.monotonic()
    assert time.monotonic() - begin < 2
    assert not receiver.kept


def test_who_ends_is_noticed_by_who_sends_and_who_receives() -> None:
    with socket_pair() as (sender, receiver, errors):
        lost: list[BaseException] = []
        sender._on_error = lost.append
        receiver.close()
        wait_until(lambda: bool(lost))
        assert "rank 0 lost its connection to rank 1" in str(lost[0])
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            _send_without_end(sender)
        assert not errors, "what one ends itself is no error"


def _send_without_end(sender: Any) -> None:
    for step in itertools.count():
        channel_to(sender, 1).send(HASH, MessageKey(0, 0, 0, step), describe(None), None)


def _take(receiver: Any, steps: Iterable[int]) -> None:
    for step in steps:
        receiver.wait(MessageKey(0, 0, 0, step), timeout_s=5)
        receiver.take(MessageKey(0, 0, 0, step))


def _as(wire: int, other: TensorMeta) -> Callable[[Any], None]:
    """Make the sender believe that a wire carries something else, and send that."""

    def send(sender: Any) -> None:
        wires = list(WIRES)
        wires[wire] = Expected("a", other)
        sender.register(0, wires)
        sender.send([1], MessageKey(0, wire, 0, 0), torch.ones(other.shape, dtype=getattr(torch, other.dtype)))

    return send


def _steps(*steps: int) -> Callable[[Any], None]:
    def send(sender: Any) -> None:
        for step in steps:
            sender.send([1], MessageKey(0, 0, 0, step), torch.ones(2, 3))

    return send


def _lost(sender: Any) -> None:
    channel_to(sender, 1).sent += 1
    sender.send([1], MessageKey(0, 0, 0, 0), torch.ones(2, 3))


def _with_gaps(sender: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for module in ("sockets", "same_machine"):
            patch.setattr(f"runtime.transport.{module}.dense", lambda tensor: tensor)
        sender.send([1], MessageKey(0, 0, 0, 0), torch.ones(2, 6)[:, ::2])


def _of_table_9(sender: Any) -> None:
    sender.register(9, WIRES)
    sender.send([1], MessageKey(9, 0, 0, 0), torch.ones(2, 3))


STRANGERS: dict[str, tuple[Callable[[Any], None], str]] = {
    "another shape": (_as(0, meta(3, 2)), r"%a should be float32\[2,3\], it is float32\[3, 2\] in 24 bytes"),
    "too long": (_as(0, meta(200, 300)), r"float32\[200, 300\] in 240000 bytes"),
    "too short": (_as(0, meta(1, 3)), r"float32\[1, 3\] in 12 bytes"),
    "strides with gaps": (_with_gaps, r"%a has the strides \[6, 2\], with which it does not fill its memory"),
    "another dtype": (_as(0, meta(2, 3, dtype="int32")), r"it is int32\[2, 3\]"),
    "another tensor": (_as(1, meta(2, 3)), "%b comes from no other rank"),
    "a tensor that is none": (_of_table_9, "its table 9 is unknown"),
    "another step": (_steps(1), "%a of step 1 came where that of step 0 belongs"),
    "an older step": (_steps(0, 1, 0), "%a of step 0 comes after that of step 1"),
    "the same again": (_steps(0, 0), "%a of step 0 comes after that of step 0"),
    "after one that is lost": (_lost, "it is number 1, expected 0"),
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("stranger", STRANGERS)
def test_a_message_that_does_not_belong_is_refused(pair: Any, stranger: str) -> None:
    """Fault 7."""
    send, text = STRANGERS[stranger]
    with pair() as (sender, receiver, _):
        send(sender)
        with pytest.raises(MessageError, match=text) as caught:
            _take(receiver, range(3))
        assert caught.value.rank == 1


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_a_message_of_another_plan_is_refused(pair: Any) -> None:
    """Fault 7."""
    with pair((HASH, HASH + 1)) as (sender, receiver, errors):
        sender.send([1], MessageKey(0, 0, 0, 0), torch.ones(2, 3))
        with pytest.raises(MessageError, match="another plan"):
            receiver.wait(MessageKey(0, 0, 0, 0), timeout_s=5)
        assert isinstance(errors[0], EngineError)


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_a_sender_refuses_to_send_what_the_wire_does_not_carry(pair: Any) -> None:
    with pair() as (sender, _, _), pytest.raises(MessageError, match=r"%a should be float32\[2,3\]"):
        sender.send([1], MessageKey(0, 0, 0, 0), torch.ones(3, 2))


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_in_look_ahead_later_steps_may_overtake(pair: Any) -> None:
    """Steps 3 and later are run ahead, each before the exact step that follows it."""
    with pair() as (sender, receiver, _):
        receiver.forget(0, 0, ahead=3)
        _steps(0, 3, 1, 4, 2, 5, 6)(sender)
        _take(receiver, range(7))


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_messages_of_a_forgotten_trajectory_are_dropped_also_when_late(pair: Any) -> None:
    with pair() as (sender, receiver, _):
        _steps(0, 1)(sender)
        receiver.wait(MessageKey(0, 0, 0, 0), timeout_s=5)
        receiver.forget(0, 5)
        _steps(2, 5)(sender)
        receiver.wait(MessageKey(0, 0, 0, 5), timeout_s=5)
        receiver.take(MessageKey(0, 0, 0, 5))
        assert receiver.kept == 0


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_messages_of_a_graph_that_is_let_go_of_are_dropped_also_when_late(pair: Any) -> None:
    """Whichever end has forgotten it first; what comes after them arrives, and no memory stays taken."""
    with pair() as (sender, receiver, errors):
        for table in (1, 2, 3, 4, 5):
            for box in (sender, receiver):
                box.register(table, WIRES)
            for step in range(3):
                sender.send([1], MessageKey(table, 0, 0, step), torch.ones(2, 3))
            for box in (sender, receiver) if table % 2 else (receiver, sender):
                box.unregister([table])
            sender.send([1], MessageKey(0, 0, 0, table), torch.full((2, 3), float(table)))
            receiver.wait(MessageKey(0, 0, 0, table), timeout_s=5)
            assert float(receiver.take(MessageKey(0, 0, 0, table))[0, 0]) == table
        assert receiver.kept == 0
        assert not errors
        channel = channel_to(sender, 1)
        if hasattr(channel, "_slots"):
            assert channel._slots._count <= 2 * 3, "their numbers are used again"


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_a_late_message_longer_than_any_before_is_refused(pair: Any) -> None:
    with pair() as (sender, receiver, errors):
        for box, wires in ((sender, (Expected("a", meta(999), (0,)),)), (receiver, WIRES)):
            box.register(1, wires)
        receiver.unregister([1])
        sender.send([1], MessageKey(1, 0, 0, 0), torch.ones(999))
        with pytest.raises(MessageError, match="table 1 is forgotten, and no message ever had 3996 bytes"):
            receiver.wait(MessageKey(0, 0, 0, 0), timeout_s=5)
        assert errors


FRAGILE = fragile()


def _odd_message(engine: Engine, kind: str) -> None:
    """Send rank 1 a message like the latent of the next step, but odd."""
    mailbox: Any = engine._ranks.workers[0].mailbox
    wires = list(mailbox._tables[0])
    index = next(i for i, wire in enumerate(wires) if wire.value == "x")
    wire, step = wires[index], 6
    if kind == "step":
        step = 7
    elif kind == "tensor":
        index = next(i for i, other in enumerate(wires) if other.senders)  # what rank 1 sends, comes back
    elif kind == "shape":
        wire = Expected("x", meta(5, 2, 8))
    elif kind == "dtype":
        wire = Expected("x", meta(2, 5, 8, dtype="int32"))
    wires[index] = wire
    was, mailbox._tables[0] = mailbox._tables[0], wires
    mailbox.plan_hash += kind == "plan"
    mailbox.send([1], MessageKey(0, index, 0, step), torch.ones(wire.meta.shape, dtype=getattr(torch, wire.meta.dtype)))
    mailbox.plan_hash -= kind == "plan"
    mailbox._tables[0] = was


@pytest.mark.processes
@pytest.mark.parametrize("kind", ["step", "tensor", "shape", "dtype", "plan"])
def test_a_rank_refuses_a_message_that_does_not_belong(kind: str) -> None:
    """Fault 7."""
    with engine_for(FRAGILE, plan_for(FRAGILE), exact=True) as engine:  # exact: nothing else is under way
        trajectory(engine)
        begin = time.monotonic()
        _odd_message(engine, kind)
        error = call_until_it_fails(engine, begin=6)
        assert time.monotonic() - begin < 2
        assert isinstance(error, MessageError)
        assert (error.rank, error.component) == (1, 0)
