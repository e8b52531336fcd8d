"""A sender and a reader on GPUs that are not there and cannot read each other's memory: two hosts in one process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
import torch

from runtime.transport import network_staging, socket_channel, staged
from runtime.transport.mailbox import Expected, MessageKey
from tests.support.fake_cuda import FakeCuda
from tests.support.fake_driver import FakeDriver, fake_staging
from tests.support.mailboxes import WIRES, network_pair, same_machine_pair


class Hosts:
    """A sender on cuda:0 and a reader on cuda:1, each a host with a compute stream of its own."""

    def __init__(self, cuda: FakeCuda, driver: FakeDriver, sender: Any, receiver: Any, errors: list[Any]) -> None:
        self.cuda, self.driver = cuda, driver
        self.sender, self.receiver, self.errors = sender, receiver, errors
        self._clocks = Counter[int](), Counter[int]()
        self._streams = cuda.new_stream("cuda:0"), cuda.new_stream("cuda:1")

    @contextmanager
    def on(self, rank: int) -> Iterator[None]:
        with self.cuda.as_host(self._clocks[rank]), self.cuda.stream(self._streams[rank]):
            yield

    def send(self, step: int, table: int = 0, size: tuple[int, int] = (2, 3)) -> None:
        """Send a tensor, and write to it at once."""
        with self.on(0):
            tensor = torch.full(size, float(step), device="cuda:0")
            self.sender.send([1], MessageKey(table, 0, 0, step), tensor)
            tensor.add_(100)

    def take(self, step: int, table: int = 0) -> Any:
        """Take a message, and compute with it."""
        with self.on(1):
            self.receiver.wait(MessageKey(table, 0, 0, step), timeout_s=5)
            return self.receiver.take(MessageKey(table, 0, 0, step)).to("cuda:1") + 1  # as a worker does

    def values(self, computed: torch.Tensor) -> list[float]:
        with self.on(1):
            found: list[float] = computed.cpu().unique().tolist()
        return found

    def look(self, rank: int) -> int:
        with self.on(rank):
            kept: int = (self.sender, self.receiver)[rank].kept
        return kept

    def open(self, table: int, wires: Sequence[Expected] = WIRES) -> None:
        for box in (self.sender, self.receiver):
            box.register(table, wires)

    def drop(self, table: int) -> None:
        """Neither wants messages of a table any more; the reader has not looked whether there are any."""
        with self.on(1):
            self.receiver.unregister([table])
        self.look(1)
        with self.on(0):
            self.sender.unregister([table])

    @property
    def channel(self) -> Any:
        return self.sender._channels[1]

    @property
    def spare(self) -> list[int]:
        """Numbers of slots that are there for other wires."""
        return [number for slots in self.channel._slots._spare.values() for number, _ in slots]

    @property
    def memories(self) -> set[type]:
        """Of which kinds the slots are that the sender uses."""
        return {type(memory) for _, _, memory in self.channel._slots._of_wire}


@contextmanager
def machines(
    monkeypatch: pytest.MonkeyPatch,
    staging: ModuleType = network_staging,
    sockets: ModuleType = socket_channel,
    **driven: Any,
) -> Iterator[Hosts]:
    """A pair on two machines.

    Args:
        staging, sockets: modules of NetworkStaging and of SocketChannel.
        driven: attributes of the FakeDriver.
    """
    monkeypatch.setattr("runtime.transport.channel._PROBE_BYTES", 1 << 13)
    with fake_staging(monkeypatch) as (cuda, driver), monkeypatch.context() as patch:
        driver.patch_network(patch, staging, sockets)
        patch.setattr("runtime.transport.mixed.network_staging", staging.network_staging)
        patch.setattr("runtime.transport.sockets.SocketChannel", sockets.SocketChannel)
        for name, value in driven.items():
            setattr(driver, name, value)
        with network_pair(devices=("cuda:0", "cuda:1")) as (sender, receiver, errors):
            yield Hosts(cuda, driver, sender, receiver, errors)
            assert not errors


@contextmanager
def hosts(monkeypatch: pytest.MonkeyPatch, module: ModuleType = staged, **driven: Any) -> Iterator[Hosts]:
    """A pair whose trials are over, if they end.

    Args:
        module: that of StagedMemory.
        driven: attributes of the FakeDriver.
    """
    monkeypatch.setattr("runtime.transport.channel._PROBE_BYTES", 1 << 13)
    with fake_staging(monkeypatch, module) as (cuda, driver):
        for name, value in driven.items():
            setattr(driver, name, value)
        with same_machine_pair(devices=("cuda:0", "cuda:1")) as (sender, receiver, errors):
            pair = Hosts(cuda, driver, sender, receiver, errors)
            for rank in (1, 0, 1, 0):
                pair.look(rank)
            yield pair
            assert not errors


def exchange(pair: Hosts) -> list[Any]:
    """Messages that are taken at once or later, or dropped unseen; returns what was computed with them."""
    computed = []
    for step in range(8):
        pair.send(step)
        if step in (0, 2, 4, 7):
            computed += [pair.take(taken) for taken in range(len(computed), step + 1)]
    for table in (1, 2):
        pair.open(table)
        pair.send(0, table)
        pair.drop(table)
    return computed
