"""SameMachineMailbox and its channels: slots, what does not fit, the end of either side, and what is left behind."""

from __future__ import annotations

import errno
import gc
import os
import pkgutil
import threading
import time
from typing import Any

import pytest
import torch

from runtime.errors import EngineError, MessageError, RankOutOfMemory
from runtime.transport.mailbox import PARAMETER_CONTEXT, Expected, MessageKey, PeerLost
from tests.support.forks import in_a_child
from tests.support.mailboxes import WIRES, meta, same_machine_pair


def _slots(sender: Any) -> int:
    """How many slots the sender has made."""
    return sum(map(len, sender._channels[1]._slots._of_wire.values()))


def _pass_on(sender: Any, receiver: Any, step: int, tensor: torch.Tensor, wire: int = 0, table: int = 0) -> Any:
    key = MessageKey(table, wire, 0, step)
    sender.send([1], key, tensor)
    receiver.wait(key, timeout_s=5)
    return receiver.take(key)


def _mapped() -> int:
    """How many regions and boards this process has mapped."""
    with open("/proc/self/maps") as maps:
        return sum("diffusion-partitioner" in line for line in maps)


def test_a_message_stays_as_it_is_while_anything_uses_it_and_then_its_slot_is_used_again() -> None:
    with same_machine_pair() as (sender, receiver, _):
        kept: list[torch.Tensor] = []
        for step in range(40):
            kept = [*kept, _pass_on(sender, receiver, step, torch.full((2, 3), float(step)))][
                -3:
            ]  # a predictor does so
            assert [tensor[0, 0].item() for tensor in kept] == [max(0, step - 2 + i) for i in range(3)][-len(kept) :]
        assert _slots(sender) == 4
        view = kept[-1].t()[1:]
        del kept
        assert [sender._channels[1]._slots.board.is_free(number) for number in range(4)].count(False) == 1
        assert view.unique().tolist() == [39.0]
        del view
        assert all(sender._channels[1]._slots.board.is_free(number) for number in range(4))


def test_a_steady_message_is_one_packet_of_which_only_the_head_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """That nothing more has come is not asked, and what describes the tensor is neither written nor read again."""
    asked: list[str] = []

    def counted(name: str) -> None:
        module, _, attribute = name.rpartition(".")
        owner: Any = pkgutil.resolve_name(module)
        original = getattr(owner, attribute)
        monkeypatch.setattr(owner, attribute, lambda *args: asked.append(attribute) or original(*args))

    with same_machine_pair() as (sender, receiver, _):
        _pass_on(sender, receiver, 0, torch.ones(2, 3))
        counted("runtime.transport.packets.PacketSocket.receive")
        counted("runtime.transport.same_machine.describe")
        counted("runtime.transport.checked.description_of")
        for step in range(1, 11):
            key = MessageKey(0, 0, 0, step)
            sender.send([1], key, torch.full((2, 3), float(step)))
            assert receiver.ready(key)
            assert receiver.take(key).eq(step).all()
        assert asked == ["receive"] * 10


def test_a_message_is_read_before_those_behind_it_are_taken_in() -> None:
    with same_machine_pair() as (sender, receiver, _):
        for step in range(3):
            sender.send([1], MessageKey(0, 0, 0, step), torch.ones(2, 3))
        assert receiver.ready(MessageKey(0, 0, 0, 0))
        assert list(receiver._arrived) == [MessageKey(0, 0, 0, 0)]
        assert receiver.kept == 3


def test_a_forked_process_that_frees_its_copy_of_a_message_frees_no_slot() -> None:
    with same_machine_pair() as (sender, receiver, _):
        kept = [_pass_on(sender, receiver, 0, torch.ones(2, 3))]
        in_a_child(kept.clear)
        assert not sender._channels[1]._slots.board.is_free(0)
        kept.clear()
        assert sender._channels[1]._slots.board.is_free(0)


def test_a_sender_never_waits_also_for_a_reader_that_has_long_not_looked() -> None:
    with same_machine_pair() as (sender, receiver, errors):
        count = 1000  # more packets than a socket holds
        for step in range(count):
            sender.send([1], MessageKey(0, 0, 0, step), torch.full((2, 3), float(step)))
        for step in range(count):
            receiver.wait(MessageKey(0, 0, 0, step), timeout_s=5)
            assert receiver.take(MessageKey(0, 0, 0, step)).eq(step).all()
        assert not errors
        assert sender._channels[1]._packets._thread is None or _ends(sender._channels[1]._packets._thread)
        assert _slots(sender) <= count
        _pass_on(sender, receiver, count, torch.ones(2, 3))


def _ends(thread: threading.Thread) -> bool:
    thread.join(5)
    return not thread.is_alive()


def test_messages_of_every_size_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.transport.shared_memory.REGION_BYTES", 8192)
    sizes = [0, 1, 3, 2048, 4097]
    with same_machine_pair() as (sender, receiver, _):
        wires = [Expected(f"wire {size}", meta(size), (0,)) for size in sizes]
        sender.register(1, wires)
        receiver.register(1, wires)
        _pass_on(sender, receiver, 0, torch.ones(2, 3))
        before = _mapped()
        for index, size in enumerate(sizes):
            sent = torch.arange(float(size))
            assert torch.equal(_pass_on(sender, receiver, 0, sent, index, table=1), sent)
        assert _mapped() == before + 2 * 3  # on both sides
        for box in (sender, receiver):
            box.unregister([1])
        assert _mapped() == before


def test_the_memory_of_a_table_goes_with_its_last_message() -> None:
    with same_machine_pair() as (sender, receiver, _):
        _pass_on(sender, receiver, 0, torch.ones(2, 3))
        before = _mapped()
        for table in range(1, 6):
            for box in (sender, receiver):
                box.register(table, WIRES)
            held = _pass_on(sender, receiver, 0, torch.full((2, 3), float(table)), table=table)
            for box in (sender, receiver):
                box.unregister([table])
            assert _mapped() == before + 1
            assert held.unique().tolist() == [table]
            del held
        assert _mapped() == before
        assert sender._channels[1]._slots._count <= 3  # numbers are given again


def test_a_slot_outlasts_the_mode_in_which_it_was_first_used() -> None:
    with same_machine_pair() as (sender, receiver, _):
        with torch.inference_mode():
            first = _pass_on(sender, receiver, 0, torch.ones(2, 3))
        second = _pass_on(sender, receiver, 1, torch.full((2, 3), 2.0, requires_grad=True))
        assert not first.is_inference()
        assert not second.requires_grad
        del first
        assert _pass_on(sender, receiver, 2, torch.full((2, 3), 3.0)).unique().tolist() == [3.0]


def test_parameters_get_memory_of_their_own() -> None:
    with same_machine_pair() as (sender, receiver, _):
        key = MessageKey(0, 0, PARAMETER_CONTEXT, 0)
        sender.send([1], key, torch.ones(2, 3))
        receiver.wait(key, timeout_s=5)
        kept = receiver.take(key)
        assert all(sender._channels[1]._slots.board.is_free(number) for number in range(1))
        assert kept.sum() == 6


def test_a_message_that_comes_before_its_table_is_announced_waits_for_it() -> None:
    with same_machine_pair() as (sender, receiver, errors):
        sender.register(5, WIRES)
        sender.send([1], MessageKey(5, 0, 0, 0), torch.ones(2, 3))
        sender.send([1], MessageKey(0, 0, 0, 0), torch.ones(2, 3))  # behind it
        assert not receiver.ready(MessageKey(0, 0, 0, 0))
        receiver.register(5, WIRES)
        receiver.wait(MessageKey(5, 0, 0, 0), timeout_s=5)
        receiver.wait(MessageKey(0, 0, 0, 0), timeout_s=5)
        assert not errors


def test_who_waits_is_told_of_a_failure_and_of_the_end_of_time() -> None:
    with same_machine_pair() as (_, receiver, _):
        with pytest.raises(TimeoutError):
            receiver.wait(MessageKey(0, 0, 0, 0), timeout_s=0.01)
        threading.Timer(0.05, lambda: receiver.fail(EngineError("another rank has failed"))).start()
        begin = time.monotonic()
        with pytest.raises(EngineError, match="another rank has failed"):
            receiver.wait(MessageKey(0, 0, 0, 0), timeout_s=20)
        assert time.monotonic() - begin < 10


def test_the_end_of_a_sender_is_noticed_after_its_last_message() -> None:
    with same_machine_pair() as (sender, receiver, errors):
        sender.send([1], MessageKey(0, 0, 0, 0), torch.ones(2, 3))
        sender.close()
        with pytest.raises(PeerLost):
            receiver.wait(MessageKey(0, 0, 0, 1), timeout_s=5)
        assert isinstance(errors[0], PeerLost)
        assert errors[0].peer == 0


def test_the_end_of_a_reader_is_noticed_by_the_next_send() -> None:
    with same_machine_pair() as (sender, receiver, errors):
        sender.close()
        receiver.send([0], MessageKey(0, 0, 0, 0), torch.ones(2, 3))
        assert isinstance(errors[0], PeerLost)


def test_a_packet_that_is_none_is_refused() -> None:
    with same_machine_pair() as (sender, receiver, _):
        sender._channels[1]._packets.send(b"hello", [])
        with pytest.raises(MessageError, match="it has 5 bytes"):
            receiver.wait(MessageKey(0, 0, 0, 0), timeout_s=5)


@pytest.mark.parametrize("slot", [-2, 7, 1 << 40])
def test_a_message_in_a_slot_that_is_not_there_is_refused(slot: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with same_machine_pair() as (sender, receiver, _):
        slots = sender._channels[1]._slots
        take = slots.take
        monkeypatch.setattr(slots, "take", lambda *args: (slot, take(*args)[1], b"", []))
        sender.send([1], MessageKey(0, 0, 0, 0), torch.ones(2, 3))
        with pytest.raises(MessageError, match=f"its slot {slot} is not there"):
            receiver.wait(MessageKey(0, 0, 0, 0), timeout_s=5)


def test_a_sender_without_memory_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with same_machine_pair() as (sender, _, _):
        monkeypatch.setattr("runtime.transport.slots.BOARD_SLOTS", 0)
        with pytest.raises(RankOutOfMemory, match=r"no memory to send %a .* in use at once"):
            sender.send([1], MessageKey(0, 0, 0, 0), torch.ones(2, 3))


def test_neither_side_takes_a_lack_of_memory_for_the_end_of_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise OSError(errno.EMFILE, "too many open files")

    with same_machine_pair() as (sender, receiver, errors):
        with monkeypatch.context() as patch:
            patch.setattr("runtime.transport.shared_memory.new_file", fail)
            with pytest.raises(RankOutOfMemory, match=r"send %a .* too many open files"):
                sender.send([1], MessageKey(0, 0, 0, 0), torch.ones(2, 3))
        assert not receiver.ready(MessageKey(0, 0, 0, 0))
        sender._channels[1].sent = 0
        sender.send([1], MessageKey(0, 0, 0, 0), torch.ones(2, 3))
        with monkeypatch.context() as patch:
            patch.setattr("runtime.transport.shared_memory.HostMemory.open", fail)
            with pytest.raises(RankOutOfMemory, match=r"receive %a .* too many open files"):
                receiver.wait(MessageKey(0, 0, 0, 0), timeout_s=5)
        assert isinstance(errors[0], RankOutOfMemory)


def test_nothing_is_left() -> None:
    gc.collect()
    before = _mapped(), len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with same_machine_pair() as (sender, receiver, _):
            _pass_on(sender, receiver, 0, torch.ones(2, 3))
            sender.send([1], MessageKey(0, 0, 0, 1), torch.ones(2, 3))  # nobody takes it
    assert (_mapped(), len(os.listdir("/proc/self/fd"))) == before
