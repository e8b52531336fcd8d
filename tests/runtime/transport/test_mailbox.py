"""Mailboxes, by the simplest of them, LocalMailbox: order, what is forgotten, deadlines and failures."""

from __future__ import annotations

import threading

import pytest
import torch

from partitioner.graph.nodes import TensorMeta
from runtime.errors import EngineError
from runtime.transport.local import LocalMailbox
from runtime.transport.mailbox import Expected, MessageKey


@pytest.fixture
def pair() -> list[LocalMailbox]:
    peers: list[LocalMailbox] = []
    for rank in range(2):
        peers.append(LocalMailbox(rank, peers, torch.device("cpu")))
    for peer in peers:
        peer.register(0, [Expected("value", TensorMeta((1,), (1,), "float32"), (0,))])
    return peers


def key(step: int, context: int = 0) -> MessageKey:
    return MessageKey(0, 0, context, step)


def test_messages_are_taken_by_key_and_counted(pair: list[LocalMailbox]) -> None:
    sender, reader = pair
    for step in (2, 1):
        sender.send([1], key(step), torch.full((1,), float(step)))
    assert not reader.ready(key(3))
    assert reader.kept == 2
    assert [float(reader.take(key(step))) for step in (1, 2)] == [1, 2]
    assert reader.kept == 0
    assert sender.sent_bytes == 8
    assert not reader.ready(key(1)), "a message is handed over once"


def test_a_trajectorys_start_drops_earlier_messages_also_those_that_come_late(pair: list[LocalMailbox]) -> None:
    sender, reader = pair
    sender.send([1], key(4), torch.zeros(1))
    sender.send([1], key(4, context=1), torch.zeros(1))
    reader.forget(context=0, before_step=5)
    sender.send([1], key(3), torch.zeros(1))
    sender.send([1], key(5), torch.ones(1))
    assert not reader.ready(key(4))
    assert not reader.ready(key(3))
    assert reader.ready(key(4, context=1)), "other contexts keep theirs"
    assert float(reader.take(key(5))) == 1


def test_wait_returns_when_the_message_comes_and_counts_the_time(pair: list[LocalMailbox]) -> None:
    sender, reader = pair
    late = threading.Timer(0.05, sender.send, ([1], key(0), torch.ones(1)))
    late.start()
    reader.wait(key(0), timeout_s=10)
    assert float(reader.take(key(0))) == 1
    assert reader.wait_seconds > 0
    assert reader.waiting_for is None


def test_a_wait_that_is_too_long_says_for_what(pair: list[LocalMailbox]) -> None:
    with pytest.raises(TimeoutError, match=r"step=7.* within 0\.01 s"):
        pair[1].wait(key(7), timeout_s=0.01)
    assert pair[1].waiting_for == key(7)


def test_the_first_failure_reaches_all_who_wait(pair: list[LocalMailbox]) -> None:
    first = EngineError("first")
    failing = threading.Timer(0.05, pair[1].fail, (first,))
    failing.start()
    with pytest.raises(EngineError) as caught:
        pair[1].wait(key(0), timeout_s=10)
    assert caught.value is first
    pair[1].fail(EngineError("second"))
    assert pair[1].failure is first


def test_only_those_who_wait_are_woken(pair: list[LocalMailbox], monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = pair
    with monkeypatch.context() as patch:
        patch.setattr(other._changed, "notify_all", lambda: pytest.fail("nobody waits"))
        one.send([1], key(0), torch.ones(1))
    other.take(key(0))
    threading.Timer(0.02, lambda: one.send([1], key(1), torch.ones(1))).start()
    other.wait(key(1), timeout_s=5)
