"""Messages that have arrived on the host before they are on a device: whoever reads them waits for the right event.

The device streams of this file stand for GPUs: their events are numbers, and those waited for are noted.
"""

from __future__ import annotations

from typing import Any

import torch

from partitioner.graph.nodes import TensorMeta
from runtime.devices.acceleration import device_streams
from runtime.devices.cuda_stream import CudaDeviceStream
from runtime.devices.stream import DeviceStream
from runtime.transport.mailbox import Expected, MessageKey
from runtime.transport.stream_mailbox import StreamMailbox

CPU = torch.device("cpu")
META = TensorMeta((2, 3), (3, 1), "float32")


class NotedStream(DeviceStream):
    """An event is the number of its call; a fetched tensor is a copy, whose event is 100 later."""

    def __init__(self, rank: int) -> None:
        super().__init__(rank, CPU)
        self.done = 10 * rank
        self.accepted: list[tuple[float, int]] = []

    def now(self) -> Any:
        self.done += 1
        return self.done

    def fetch(self, tensor: torch.Tensor, made: Any, sender: DeviceStream) -> Any:
        assert made == sender.done, "recorded after the tensor was laid out, before it is fetched"  # type: ignore[attr-defined]
        return tensor.clone(), made + 100

    def accept(self, tensor: torch.Tensor, there: Any) -> None:
        self.accepted.append((float(tensor[0, 0]), there))


def mailboxes(*streams: DeviceStream) -> list[StreamMailbox]:
    peers: list[StreamMailbox] = []
    for stream in streams:
        peers.append(StreamMailbox(peers, stream))
    for peer in peers:
        peer.register(0, [Expected("value", META, (0,))])
    return peers


def message(value: float) -> torch.Tensor:
    return torch.full((3, 2), value).t()


def test_a_reader_waits_for_the_event_of_the_message_that_it_takes() -> None:
    sender, reader = NotedStream(0), NotedStream(1)
    first, second = mailboxes(sender, reader)
    first.send([1], MessageKey(0, 0, 0, 1), message(1.0))
    first.send([1], MessageKey(0, 0, 0, 2), message(2.0))
    assert reader.accepted == [], "not before it is taken"
    assert second.take(MessageKey(0, 0, 0, 2)).stride() == (1, 2), "as it lay, whatever the trace says"
    assert second.take(MessageKey(0, 0, 0, 1))[1, 2] == 1.0
    assert reader.accepted == [(2.0, 102), (1.0, 101)]
    assert first.sent_bytes == 2 * 24


def test_a_message_has_one_event_for_each_reader() -> None:
    streams = [NotedStream(rank) for rank in range(3)]
    boxes = mailboxes(*streams)
    boxes[0].send([1, 2], MessageKey(0, 0, 0, 0), message(5.0))
    boxes[2].take(MessageKey(0, 0, 0, 0))
    boxes[1].take(MessageKey(0, 0, 0, 0))
    assert streams[1].accepted == streams[2].accepted == [(5.0, 101)]
    assert streams[0].done == 1


def test_what_is_forgotten_leaves_no_event_behind() -> None:
    boxes = mailboxes(NotedStream(0), NotedStream(1))
    boxes[0].send([1], MessageKey(0, 0, 0, 1), message(1.0))
    boxes[1].forget(0, before_step=5)
    boxes[0].send([1], MessageKey(0, 0, 0, 2), message(2.0))  # of the trajectory before
    boxes[0].send([1], MessageKey(0, 0, 0, 5), message(5.0))
    assert list(boxes[1]._there) == [MessageKey(0, 0, 0, 5)]
    boxes[1].unregister([0])
    assert not boxes[1]._there


def test_what_the_driver_puts_in_itself_has_no_event() -> None:
    stream = NotedStream(0)
    (box,) = mailboxes(stream)
    box.deliver(MessageKey(0, 0, 0, 0), message(1.0))
    box.take(MessageKey(0, 0, 0, 0))
    assert stream.accepted == []


def test_ranks_on_cpus_need_no_streams() -> None:
    streams = device_streams(["cpu", "cpu"])
    assert [(stream.rank, stream.device) for stream in streams] == [(0, CPU), (1, CPU)]
    assert not any(isinstance(stream, CudaDeviceStream) for stream in streams)
    boxes = mailboxes(*streams)
    boxes[0].send([1], MessageKey(0, 0, 0, 0), message(1.0))
    assert torch.equal(boxes[1].take(MessageKey(0, 0, 0, 0)), message(1.0))
    assert boxes[1]._there == {}
