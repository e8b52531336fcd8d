"""Whole engines on GPUs that are not there: of one machine, which cannot read each other's memory
(runtime.transport.staged), and of several (runtime.transport.network_staging)."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from partitioner.plan.plan import Plan
from runtime.devices.stream import DeviceStream
from runtime.engine import Engine
from runtime.options import EngineOptions
from runtime.ranks.base import Setups, workers_of
from runtime.transport import network_staging, socket_channel
from runtime.transport.channel import Channel
from runtime.transport.mixed import MixedMailbox
from runtime.transport.packets import new_lines
from runtime.transport.same_machine import SameMachineMailbox
from runtime.transport.staged import StagedMemory
from runtime.worker.worker import Worker
from tests.support.engines import Trajectory, equal, toy, toy_plan
from tests.support.fake_cuda import FakeCuda, fake_cuda
from tests.support.fake_driver import fake_staging
from tests.support.mailboxes import tcp_line

pytestmark = pytest.mark.usefixtures("trace_once")


class Box(SameMachineMailbox):
    """A mailbox whose thread may still send something when it is closed, which processes do not."""

    def close(self) -> None:
        self._end_waits()

    def end(self) -> None:
        super().close()


class Ranks:
    """Ranks that are threads, but send each other messages as processes do; they start when trials are over."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.boxes: list[Any] = []
        monkeypatch.setattr("runtime.ranks.threads._stream_workers", self._workers)

    def _workers(self, setups: Sequence[Setups], streams: Sequence[DeviceStream]) -> list[list[Worker]]:
        def failed(error: BaseException) -> None:
            for box in self.boxes:
                box.fail(error)

        for rank, (lines, stream) in enumerate(zip(new_lines(len(setups)), streams, strict=True)):
            options: Any = {"plan_hash": 7, "announce_timeout_s": 5, "on_error": failed}
            self.boxes.append(Box(rank, lines, stream.device, **options))
        while not all(self._chosen()):
            assert [box.kept for box in self.boxes] == [0] * len(setups)  # looks
        return [workers_of(own, box) for own, box in zip(setups, self.boxes, strict=True)]

    def _channels(self) -> list[Channel]:
        return [channel for box in self.boxes for channel in box._channels.values()]

    def _chosen(self) -> list[int]:
        return [channel._chosen for channel in self._channels()]

    def check(self) -> None:
        """That messages went through locked memory."""
        assert {type(channel._memories[channel._chosen]) for channel in self._channels()} == {StagedMemory}
        used = {type(memory) for channel in self._channels() for _, _, memory in channel._slots._of_wire}
        assert StagedMemory in used

    def close(self) -> None:
        for box in self.boxes:
            box.end()


def emulated(plan: Plan, calls: int) -> list[torch.Tensor]:
    """What ``through_engine`` is to give."""
    with torch.no_grad(), Engine(toy(), plan, EngineOptions(transport="emulation")) as engine:
        return Trajectory(calls).through(engine)


def through_engine(
    cuda: FakeCuda, plan: Plan, calls: int, before_end: Callable[[], None] = lambda: None
) -> list[torch.Tensor]:
    """The outputs of a trajectory, whose inputs are written to after each call."""
    options = EngineOptions(transport="threads", cuda_graphs=False)
    devices = [f"cuda:{rank}" for rank in range(plan.ranks)]
    trajectory = Trajectory(calls)
    with (
        cuda.stream(cuda.new_stream("cuda:0")),
        torch.no_grad(),
        Engine(toy(), plan, options, devices=devices, traced=toy) as engine,
    ):
        outputs: list[torch.Tensor] = []
        for call in range(calls):
            inputs = {name: value.to("cuda:0").clone() for name, value in trajectory.inputs(call).items()}
            outputs += engine(**inputs)
            inputs["x"].copy_(outputs[-1])
        outputs = [output.cpu() for output in outputs]
        before_end()
        return outputs


class FarBox(MixedMailbox):
    """As Box, of ranks on machines of their own."""

    def close(self) -> None:
        self._end_waits()

    def end(self) -> None:
        super().close()


class FarRanks(Ranks):
    """Ranks that send each other messages over sockets."""

    def _workers(self, setups: Sequence[Setups], streams: Sequence[DeviceStream]) -> list[list[Worker]]:
        def failed(error: BaseException) -> None:
            for box in self.boxes:
                box.fail(error)

        mesh: list[dict[int, socket.socket]] = [{} for _ in setups]
        for rank in range(len(setups)):
            for other in range(rank + 1, len(setups)):
                mesh[rank][other], mesh[other][rank] = tcp_line()
        for rank, (lines, stream) in enumerate(zip(mesh, streams, strict=True)):
            options: Any = {"plan_hash": 7, "announce_timeout_s": 5, "on_error": failed}
            self.boxes.append(FarBox(rank, {}, lines, stream.device, **options))
        return [workers_of(own, box) for own, box in zip(setups, self.boxes, strict=True)]

    def check(self) -> None:
        """That messages went through locked memory: slots had something else than the trial's pattern last."""
        for box in self.boxes:
            assert box._staging._has_room
            assert {len(leaving.bytes) for leaving in box._staging._sent_from.values()} - {1 << 13}


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_on_several_machines_compute_the_same_and_nothing_is_out_of_order(
    ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.transport.channel._PROBE_BYTES", 1 << 13)
    plan = toy_plan(toy(), ranks)
    expected = emulated(plan, 9)
    with fake_staging(monkeypatch, devices=ranks) as (cuda, driver), monkeypatch.context() as patch:
        driver.patch_network(patch, network_staging, socket_channel)
        engine_ranks = FarRanks(patch)
        outputs = through_engine(cuda, plan, 9, engine_ranks.check)
        engine_ranks.close()
    assert equal(outputs, expected)
    assert cuda.errors == []
    assert driver.locked_bytes == 0


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
def test_a_further_call_has_no_host_wait_more_often_than_where_gpus_read_each_others_memory(
    ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.transport.channel._PROBE_BYTES", 1 << 13)
    plan = toy_plan(toy(), ranks)
    expected = emulated(plan, 9)
    waits = {}
    for calls in (7, 9):
        with fake_staging(monkeypatch, devices=ranks) as (cuda, driver), monkeypatch.context() as patch:
            engine_ranks = Ranks(patch)
            outputs = through_engine(cuda, plan, calls, engine_ranks.check)
            engine_ranks.close()
        assert equal(outputs, expected[:calls])
        assert cuda.errors == []
        assert driver.locked_bytes == 0
        with fake_cuda(monkeypatch, ranks) as near:
            through_engine(near, plan, calls)
        waits[calls] = cuda.waits, near.waits
    assert waits[9][0] - waits[7][0] == waits[9][1] - waits[7][1]
