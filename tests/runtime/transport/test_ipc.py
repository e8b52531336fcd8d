"""Memory of a GPU that two processes share: on one card, and what of it a CPU can show.

What needs a card is also run as on two that cannot read each other's memory: the driver's calls that share it fail.
What of that a CPU can show is in test_staged.py.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from runtime.engine import Engine
from runtime.errors import EngineError
from runtime.options import EngineOptions
from runtime.transport import cuda_driver, ipc
from runtime.transport.copies import FarSlot
from runtime.transport.ipc import DeviceMemory, DeviceSlot
from runtime.transport.layout import Layout
from runtime.transport.mailbox import MessageKey
from runtime.transport.memory import Memory
from runtime.transport.packets import new_line
from runtime.transport.shared_memory import HostMemory, HostSlot
from runtime.transport.staged import StagedMemory
from tests.support.engines import Trajectory, equal, largest_difference, toy, toy_plan
from tests.support.ipc_peer import LATE, MESSAGES, SHAPE, mailbox_of, refuse, regions_held
from tests.support.mailboxes import WIRES, same_machine_pair

ROOT = Path(__file__).parents[3]


class Kept(HostMemory):
    """Memory of the host that is treated as that of a GPU."""

    name = "memory of cpu"
    keeps = True


def _pass_on(sender: Any, receiver: Any, step: int, table: int = 0) -> torch.Tensor:
    key = MessageKey(table, 0, 0, step)
    sender.send([1], key, torch.full((2, 3), float(step)))
    receiver.wait(key, timeout_s=5)
    taken: torch.Tensor = receiver.take(key)
    assert taken.eq(step).all()
    return taken


def test_shared_memory_of_gpus_is_used_when_the_reader_has_seen_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.transport.channel.gpu_memory", lambda device: [Kept()])
    with same_machine_pair() as (sender, receiver, errors):
        channel = sender._channels[1]
        _pass_on(sender, receiver, 0)  # before the answer
        assert [type(memory) for _, _, memory in channel._slots._of_wire if memory.keeps] == [Kept]  # of the trial
        assert sender.kept == 0  # looks
        for step in range(1, 5):
            _pass_on(sender, receiver, step)
        assert [number for slots in channel._slots._of_wire.values() for number, _ in slots] == [1, 2]
        for table in range(1, 4):  # slots are used again, since their memory is not let go of
            for box in (sender, receiver):
                box.register(table, WIRES)
            _pass_on(sender, receiver, 0, table)
            for box in (sender, receiver):
                box.unregister([table])
        assert channel._slots._count == 4
        assert not errors


def test_a_message_that_a_gpu_has_yet_to_write_is_waited_for_by_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    written, free = threading.Event(), threading.Event()
    monkeypatch.setattr(HostSlot, "is_written", lambda slot: written.is_set())
    monkeypatch.setattr(HostSlot, "is_free", lambda slot: free.is_set())
    with same_machine_pair() as (sender, receiver, errors):
        key = MessageKey(0, 0, 0, 0)
        sender.send([1], key, torch.ones(2, 3))
        assert not receiver.ready(key)
        with pytest.raises(TimeoutError):
            receiver.wait(key, timeout_s=0.01)
        threading.Timer(0.02, written.set).start()
        receiver.wait(key, timeout_s=5)
        receiver.take(key)
        _pass_on(sender, receiver, 1)
        assert sender._channels[1]._slots._count == 2  # the first one's reader is not done
        free.set()
        _pass_on(sender, receiver, 2)
        assert sender._channels[1]._slots._count == 2
        written.clear()
        sender.send([1], MessageKey(0, 0, 0, 3), torch.ones(2, 3))
        assert not receiver.ready(MessageKey(0, 0, 0, 3))
        threading.Timer(0.02, lambda: receiver.fail(EngineError("another rank has failed"))).start()
        with pytest.raises(EngineError, match="another rank has failed"):
            receiver.wait(MessageKey(0, 0, 0, 3), timeout_s=5)
        receiver.unregister([0])
        assert sender._channels[1]._slots.board.is_free(0)
        assert not errors


def test_messages_are_delivered_in_order_whenever_they_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first has not been written when its packet comes, and both have when the second one's comes."""
    answers = iter([False])
    monkeypatch.setattr(HostSlot, "is_written", lambda slot: next(answers, True))
    with same_machine_pair() as (sender, receiver, errors):
        for step in range(2):
            sender.send([1], MessageKey(0, 0, 0, step), torch.full((2, 3), float(step)))
        for step in range(2):
            receiver.wait(MessageKey(0, 0, 0, step), timeout_s=5)
            assert receiver.take(MessageKey(0, 0, 0, step)).eq(step).all()
        assert not errors


def test_where_a_gpus_memory_cannot_be_shared_messages_go_through_the_host(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Blind(Kept):
        def open(self, description: bytes, files: Any) -> Any:
            slot = super().open(description, files)
            raise RuntimeError(f"no peer access to {slot.size_bytes} bytes")

    memories: Iterator[Memory] = iter([Kept(), Blind()])
    monkeypatch.setattr("runtime.transport.channel.gpu_memory", lambda device: [next(memories)])
    with same_machine_pair() as (sender, receiver, errors), caplog.at_level(logging.WARNING, "runtime"):
        for step in range(4):
            _pass_on(sender, receiver, step)
            assert sender.kept == 0
        (record,) = caplog.records
        assert "rank 1 cannot use memory of cpu: no peer access to 1048576 bytes" in record.getMessage()
        assert {type(memory) for _, _, memory in sender._channels[1]._slots._of_wire} == {HostMemory}
        assert not errors


class Stream:
    """A stream of a GPU that is not there."""

    cuda_stream = 7
    is_done = False

    def query(self) -> bool:
        return self.is_done


class Unrecorded:
    """An event."""

    def record(self, stream: Stream) -> None:
        pass


@contextmanager
def regions_here(monkeypatch: pytest.MonkeyPatch, stream: Stream) -> Iterator[list[int]]:
    """Memory of a GPU lies on the host; gives the addresses of what has been freed or closed."""
    given_back: list[int] = []
    room = torch.empty(1 << 23, dtype=torch.uint8)
    begin = room.data_ptr()
    with monkeypatch.context() as patch:
        patch.setattr("torch.cuda.current_stream", lambda device: stream)
        patch.setattr(cuda_driver, "allocate", lambda index, size_bytes: begin)
        patch.setattr(cuda_driver, "export", lambda index, address: b"handle")
        patch.setattr(cuda_driver, "open_exported", lambda index, handle: begin)
        patch.setattr(cuda_driver, "device_of", lambda address: 0)
        patch.setattr(cuda_driver, "tensor_at", lambda index, address, size_bytes, owner: room[:size_bytes])
        for name in ("free", "close_exported"):
            patch.setattr(cuda_driver, name, lambda index, address: given_back.append(address))
        patch.setattr(ipc, "_shared_event", lambda device: (Unrecorded(), b"event"))
        patch.setattr(ipc, "_event_of", lambda device, handle: Unrecorded())
        yield given_back


@pytest.mark.parametrize("side", ["sender", "reader"])
def test_memory_that_a_stream_still_uses_is_given_back_later(side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipc, "END_S", 0.01)
    stream, gpu = Stream(), torch.device("cuda:0")
    with regions_here(monkeypatch, stream) as given_back:
        tensor = torch.ones(8, 64)
        layout = Layout.of(tensor)
        used, other = DeviceMemory(gpu), DeviceMemory(gpu)
        slot, description, _ = used.make(0, tensor.nbytes)
        if side == "sender":
            slot.write(tensor, layout)
        else:
            used = DeviceMemory(gpu)
            slot = used.open(description, [])  # type: ignore[assignment]
            given_back.clear()
            slot.lend(layout, lambda: None)
        used.close()
        del used, slot
        gc.collect()
        assert not given_back
        assert len(ipc._left) == 1
        other.close()
        assert not given_back, "the stream is not done"
        stream.is_done = True
        other.close()
        gc.collect()
        assert len(given_back) == 1
        assert not ipc._left


def test_whose_an_address_is_is_asked_on_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch asks CUDA, which makes a context on the thread's current GPU."""
    current = [0]

    @contextmanager
    def device(index: int) -> Iterator[None]:
        current.append(index)
        yield
        current.pop()

    bytes_ = torch.zeros(16, dtype=torch.uint8)

    def as_tensor(made: Any, device: str) -> torch.Tensor:
        assert (current[-1], device) == (3, "cuda:3")
        return bytes_

    monkeypatch.setattr("torch.cuda.device", device)
    monkeypatch.setattr("torch.as_tensor", as_tensor)
    assert cuda_driver.tensor_at(3, bytes_.data_ptr(), 16, None) is bytes_


@contextmanager
def peer(kind: str) -> Iterator[socket.socket]:
    """The process of tests.support.ipc_peer, by the socket that it takes lines from."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "tests.support.ipc_peer", str(theirs.fileno()), kind]
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd=ROOT)
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        try:
            process.wait(timeout=10)
        finally:
            process.kill()


def _exchange(control: socket.socket) -> set[tuple[type, type]]:
    """Send messages over a new channel, with several under way, and check what comes back.

    Returns:
        In what kinds of memory and slots answers came.
    """
    mine, theirs = new_line()
    with theirs:
        socket.send_fds(control, [b"+"], [theirs.fileno()])
    box = mailbox_of(0, mine)
    kept: deque[tuple[int, torch.Tensor]] = deque(maxlen=3)
    kinds: set[tuple[type, type]] = set()

    def answer(step: int) -> None:
        key = MessageKey(0, 1, 0, step)
        box.wait(key, timeout_s=30)
        kept.append((step, box.take(key)))

    for step in range(MESSAGES):
        if step % 4 == 1:
            torch.cuda._sleep(LATE)
        box.send([1], MessageKey(0, 0, 0, step), torch.full(SHAPE, float(step), device="cuda"))
        if step >= 2:
            answer(step - 2)
            for number, tensor in kept:
                assert tensor.eq(number + 1).all()
        kinds |= {(type(memory), type(slot)) for _, memory, slot, _ in box._channels[1]._theirs.values()}
    for step in (MESSAGES - 2, MESSAGES - 1):
        answer(step)
    assert all(tensor.eq(number + 1).all() for number, tensor in kept)
    kept.clear()
    torch.cuda.synchronize()
    control.send(b".")
    assert control.recv(1) == b"\0"  # the regions that it holds
    box.close()
    return kinds


@pytest.mark.gpu
@pytest.mark.processes
@pytest.mark.parametrize(
    ("kind", "memory", "slot"),
    [("near", DeviceMemory, DeviceSlot), ("far", DeviceMemory, FarSlot), ("refused", StagedMemory, FarSlot)],
    ids=["near", "far", "refused"],
)
def test_messages_are_read_when_they_are_there_and_not_overwritten(
    kind: str, memory: type, slot: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "far":
        monkeypatch.setattr("runtime.transport.cuda_driver.device_of", lambda address: -1)
    elif kind == "refused":
        monkeypatch.setattr("runtime.transport.cuda_driver.open_exported", refuse)
    with peer(kind) as control:
        for _ in range(40):
            assert (memory, slot) in _exchange(control)
            assert regions_held() == 0


@pytest.mark.gpu
@pytest.mark.processes
def test_a_gpu_whose_memory_cannot_be_shared(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "runtime"), peer("refused") as control:
        kinds = _exchange(control)
    assert (DeviceMemory, DeviceSlot) in kinds  # this process can open the other's
    (record,) = caplog.records
    assert record.getMessage() == (
        "rank 1 cannot use memory of cuda:0: as in some virtual machines. What is sent to it goes through page-locked "
        "memory of the host"
    )


@pytest.mark.gpu
@pytest.mark.processes
@pytest.mark.parametrize("memory", [DeviceMemory, StagedMemory])
@pytest.mark.parametrize("options", [{}, {"cuda_graphs": True}], ids=str)
def test_ranks_on_one_gpu_send_through_its_memory(
    options: dict[str, bool], memory: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    if memory is StagedMemory:  # from and to the driver
        for name in ("open_exported", "allocate"):
            monkeypatch.setattr(f"runtime.transport.cuda_driver.{name}", refuse)
    denoiser = toy().cuda()
    plan = toy_plan(toy(), 3)
    trajectory = Trajectory(calls=14)
    trajectory.latents = [latent.cuda() for latent in trajectory.latents]
    trajectory.timesteps = [timestep.cuda() for timestep in trajectory.timesteps]
    trajectory.context = trajectory.context.cuda()
    devices = ["cuda:0"] * plan.ranks
    with Engine(denoiser, plan, EngineOptions(transport="emulation"), devices=devices) as engine:
        wanted = [output.clone() for output in trajectory.through(engine)]
    with Engine(denoiser, plan, EngineOptions(**options), devices=devices) as engine:
        outputs = [output.clone() for output in trajectory.through(engine)]
        channels = engine._ranks.workers[0].mailbox._channels.values()
        assert memory in {type(theirs) for channel in channels for _, theirs, _, _ in channel._theirs.values()}
        assert memory in {type(own) for channel in channels for _, _, own in channel._slots._of_wire}
    assert largest_difference(outputs, wanted) < 1e-4
    assert options or equal(outputs, wanted)


FAULTS = """
import os, signal, sys, time
import torch
from runtime.engine import Engine
from runtime.errors import EngineError
from runtime.options import EngineOptions
from runtime.transport import cuda_driver
from tests.support.ipc_peer import refuse
from tests.support.traces import rank_processes
from tests.support.trouble import fragile, inputs, plan_for

def on_gpu(call):
    return {name: tensor.cuda() for name, tensor in inputs(call).items()}

if sys.argv[1] == "staged":
    cuda_driver.open_exported = cuda_driver.allocate = refuse
denoiser = fragile().cuda()
plan = plan_for(fragile())
for number in map(int, sys.argv[2:]):
    try:
        with Engine(denoiser, plan, EngineOptions(step_timeout_s=6), devices=["cuda:0"] * 2) as engine:
            for call in range(6):
                engine(**on_gpu(call))[0].sum().item()
            os.kill(rank_processes()[0], number)
            for call in range(6, 1000):
                engine(**on_gpu(call))[0].sum().item()
    except EngineError as error:
        print(type(error).__name__, flush=True)
torch.cuda.synchronize()
print("works:", torch.ones(3, device="cuda").sum().item(), flush=True)
os._exit(0)
"""


@pytest.mark.gpu
@pytest.mark.processes
@pytest.mark.parametrize("through", ["ipc", "staged"])
def test_ranks_that_are_killed_or_stopped_leave_the_gpu_usable(through: str) -> None:
    """In a program of its own: where a stream waited for ever, so would every later test of this one."""
    numbers = [signal.SIGKILL, signal.SIGSTOP]
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, through, *(str(int(number)) for number in numbers)],
        cwd=ROOT, capture_output=True, text=True, timeout=50, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout.splitlines() == ["RankDied", "RankStalled", "works: 3.0"], done.stderr
