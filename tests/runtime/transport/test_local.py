"""LocalMailbox: a message keeps its tensor's layout, and ends with its mailbox."""

from __future__ import annotations

import pytest
import torch

from partitioner.graph.nodes import TensorMeta
from runtime.errors import EngineError
from runtime.transport.local import LocalMailbox
from runtime.transport.mailbox import Expected, MessageKey

KEY = MessageKey(0, 0, 0, 0)


def pair(meta: TensorMeta) -> list[LocalMailbox]:
    peers: list[LocalMailbox] = []
    for rank in range(2):
        peers.append(LocalMailbox(rank, peers, torch.device("cpu")))
    for peer in peers:
        peer.register(0, [Expected("value", meta, (0,))])
    return peers


def test_a_message_keeps_the_memory_order_that_its_tensor_has() -> None:
    """Whatever the trace says of it; what has gaps is copied, in that order."""
    sender, reader = pair(TensorMeta((2, 3), (3, 1), "float32"))
    lain_out = torch.arange(6.0).view(3, 2).t()
    sender.send([1], KEY, lain_out)
    assert reader.take(KEY) is lain_out
    sender.send([1], KEY, torch.arange(12.0).view(3, 4)[:, ::2].t())
    assert reader.take(KEY).stride() == (1, 2)


def test_who_waits_at_a_closed_mailbox_is_told() -> None:
    sender, reader = pair(TensorMeta((1,), (1,), "float32"))
    sender.send([1], KEY, torch.zeros(1))
    reader.close()
    assert reader.kept == 0
    with pytest.raises(EngineError, match="the engine is closed"):
        reader.wait(KEY)
