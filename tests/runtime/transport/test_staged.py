"""Messages through page-locked memory, on GPUs that are not there: no card has run this.

The GPUs are those of tests/support/fake_cuda.py, the driver is tests/support/fake_driver.py: they find what is out of
order, whatever the timing. Every line that orders something is left out in turn, and must be missed.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import socket
from collections import Counter, deque
from collections.abc import Mapping
from random import Random
from types import ModuleType
from typing import Any

import pytest
import torch

from runtime.transport import channel, copies, same_machine, staged
from runtime.transport.mailbox import Expected, MessageKey, PeerLost
from runtime.transport.packets import new_line, new_lines
from runtime.transport.same_machine import SameMachineMailbox
from runtime.transport.shared_memory import HostMemory
from tests.support.fake_driver import failing_trials, fake_staging
from tests.support.far_hosts import exchange, hosts
from tests.support.left_out import changed, lines
from tests.support.mailboxes import WIRES, meta, same_machine_pair

THROUGH_LOCKED = (
    "rank 1 cannot use memory of cuda:0: no peer access. What is sent to it goes through page-locked memory"
)


def test_messages_between_gpus_that_cannot_read_each_others_memory(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "runtime"), hosts(monkeypatch) as pair:
        computed = exchange(pair)
        for step, tensor in enumerate(computed):
            assert pair.values(tensor) == [step + 1]
        assert pair.memories == {staged.StagedMemory}
        cuda, driver = pair.cuda, pair.driver
    assert cuda.errors == []
    assert driver.locked_bytes == 0
    assert cuda.used[0] == 0
    said = [record.getMessage() for record in caplog.records if "rank 1" in record.getMessage()]
    assert len(said) == 1
    assert said[0].startswith(THROUGH_LOCKED)


def test_what_holds_of_several_peers_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with fake_staging(monkeypatch, devices=3), caplog.at_level(logging.INFO, "runtime"):
        monkeypatch.setattr(channel, "_PROBE_BYTES", 1 << 13)
        boxes = [mailbox_of(rank, lines) for rank, lines in enumerate(new_lines(3))]
        for _ in range(3):
            assert [box.kept for box in boxes] == [0, 0, 0]
        for box in boxes:
            box.close()
    said = Counter((record.levelname, record.getMessage().split(": ")[0].split()[-1]) for record in caplog.records)
    assert said == {(level, f"cuda:{rank}"): 1 for level in ("WARNING", "INFO") for rank in range(3)}


def test_neither_host_waits_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with hosts(monkeypatch) as pair:
        waits = pair.cuda.waits
        exchange(pair)
        assert pair.cuda.waits == waits
    with hosts(monkeypatch, refusal="no") as pair:
        waits = pair.cuda.waits
        exchange(pair)
        assert pair.cuda.waits > waits, "the fake GPUs do not count"


def test_a_message_is_not_there_before_its_word_is_set_and_its_slot_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    with hosts(monkeypatch) as pair:
        pair.driver.late = True
        for step in range(3):
            pair.send(step)  # without waiting
        assert pair.look(1) == 0
        with pytest.raises(TimeoutError):
            pair.receiver.wait(MessageKey(0, 0, 0, 0), timeout_s=0.01)
        pair.receiver.forget(0, 1)
        pair.driver.settle()
        assert pair.look(1) == 2
        for step in (1, 2):
            assert pair.values(pair.take(step)) == [step + 1]
        for table in (1, 2):
            pair.open(table)
            pair.send(0, table)
            pair.drop(table)
        assert pair.channel._slots.board.is_free(pair.spare[-1])
        assert len(set(pair.spare)) == len(pair.spare), "a copy to that slot may be under way"
        pair.driver.late = False
        pair.driver.settle()
        pair.open(3)
        pair.send(1, 3)
        assert pair.values(pair.take(1, 3)) == [2]
        assert pair.cuda.errors == []


@pytest.mark.parametrize("seed", range(4))
def test_whatever_comes_late_and_whatever_is_dropped(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wires of several sizes come and go; words are set whenever they are, in order."""
    random = Random(seed)
    sizes = {0: (2, 3)}
    sent: dict[int, deque[int]] = {0: deque()}
    taken = []
    with hosts(monkeypatch) as pair:
        pair.driver.late = True
        for step in range(120):
            table = random.choice(list(sizes))
            match random.choice(["send", "send", "send", "take", "take", "settle", "look", "open", "drop"]):
                case "send":
                    pair.send(step, table, sizes[table])
                    sent[table].append(step)
                case "take" if sent[table]:
                    pair.driver.settle()
                    taken.append((sent[table][0], pair.take(sent[table].popleft(), table)))
                case "settle":
                    pair.driver.settle(random.randrange(4))
                case "look":
                    pair.look(random.randrange(2))
                case "open" if len(sizes) < 4:
                    new = step + 1
                    sizes[new], sent[new] = random.choice([(2, 3), (5, 7), (64, 64)]), deque()
                    pair.open(new, [Expected("a", meta(*sizes[new]), (0,))])
                case "drop" if len(sizes) > 1:
                    pair.drop(table)
                    del sizes[table], sent[table]
        pair.driver.settle()
        for step, computed in taken:
            assert pair.values(computed) == [step + 1]
        assert len(taken) > 5
        assert pair.memories == {staged.StagedMemory}
        assert pair.cuda.errors == []


CHANGED = [
    *lines(
        staged,
        ("self._word.put(_ON_ITS_WAY)", "pass"),
        ("leaving.wait_event(", "str("),
        ("return self._word.is_set()", "return True"),
        ("Word(region, offset).is_set, self", "lambda: True, self"),
        ("if not all(stream.end(timeout_s) for stream in streams)", "if False"),
        (
            "cuda_driver.copy(leaving,",
            "cuda_driver.write_word(leaving, self._word.known_as, _THERE); cuda_driver.copy(leaving,",
        ),
    ),
    *lines(
        copies,
        ("while not (self._ended or self.stream.query())", "while False"),
        ("self._under_way and self._under_way[0][0].query()", "self._under_way"),
    ),
    *lines(same_machine, ("stream.wait_event(there)", "pass"), ("tensor.record_stream(stream)", "pass")),
    *lines(channel, ("torch.cuda.current_stream(self._device).wait_event(there)", "pass")),
]
TAKEN_BY = {
    staged: ["runtime.transport.channel.StagedMemory"],
    copies: [f"runtime.transport.staged.{name}" for name in ("Arriving", "CopyStream", "FarSlot")],
    same_machine: ["tests.support.mailboxes.SameMachineMailbox"],
    channel: ["runtime.transport.same_machine.Channel"],
}


@pytest.mark.parametrize(("module", "line", "to"), CHANGED)
def test_every_line_that_orders_something_is_missed_where_it_is_left_out(
    module: ModuleType, line: str, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = changed(module, line, to)
    for name in TAKEN_BY[module]:
        monkeypatch.setattr(name, getattr(other, name.split(".")[-1]))
    with hosts(monkeypatch, other if module is staged else staged) as pair:
        exchange(pair)
        errors = pair.cuda.errors
    gc.collect()
    assert errors, "nobody misses it"


@pytest.mark.parametrize(("driven", "why"), failing_trials("it does not see there what was written"))
def test_where_a_trial_fails_messages_go_as_before(
    driven: dict[str, Any], why: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(channel, "_PROBE_S", 0.01)
    monkeypatch.setattr(staged, "END_S", 0.01)
    with caplog.at_level(logging.WARNING, "runtime"), hosts(monkeypatch, **driven) as pair:
        for step in range(3):
            pair.send(step)
            with pair.on(1):
                pair.receiver.wait(MessageKey(0, 0, 0, step), timeout_s=5)
                assert pair.receiver.take(MessageKey(0, 0, 0, step)).unique().tolist() == [step]
        assert pair.memories == {HostMemory}
    (said,) = [record.getMessage() for record in caplog.records if "rank 1" in record.getMessage()]
    assert said == (
        f"rank 1 cannot use memory of cuda:0: no peer access, nor page-locked memory of the host: {why}. "
        "What is sent to it goes through the host's memory"
    )


def test_where_no_more_can_be_locked_messages_go_as_before(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At most half of what the host has free is locked at a time."""
    monkeypatch.setattr(staged, "SHARED_REGION_BYTES", 1 << 21)
    with hosts(monkeypatch) as pair:
        for step in range(2):
            pair.send(step)
        with caplog.at_level(logging.WARNING, "runtime"):
            monkeypatch.setattr(staged, "free_bytes", lambda device: (1 << 22) - 1)
            big = WIRES[0].meta.__class__((1 << 19, 1), (1, 1), "float32")
            for box in (pair.sender, pair.receiver):
                box.register(1, [WIRES[0].__class__("a", big, (0,))])
            pair.send(0, 1, (1 << 19, 1))
            pair.send(2)
        assert HostMemory in pair.memories
        for step in range(2):
            assert pair.values(pair.take(step)) == [step + 1]
        with pair.on(1):
            for key in (MessageKey(1, 0, 0, 0), MessageKey(0, 0, 0, 2)):
                pair.receiver.wait(key, timeout_s=5)
                assert pair.receiver.take(key).unique().tolist() == [key.step]
        assert pair.cuda.errors == []
    assert "page-locked memory of the host: of 4194303 bytes that the host has free, 2101248 would be" in (
        caplog.records[-1].getMessage()
    )


def test_memory_of_copies_that_take_long_is_unlocked_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staged, "END_S", 0.01)
    with hosts(monkeypatch) as pair:
        pair.send(0)
        with monkeypatch.context() as patch:
            patch.setattr("tests.support.fake_cuda.FakeStream.query", lambda stream: False)
            pair.sender.close()
            pair.receiver.close()
        assert len(staged._left) == 2
        assert pair.driver.locked_bytes == 4 * staged.SHARED_REGION_BYTES
        with same_machine_pair(devices=("cuda:0", "cuda:1")):
            assert staged._left == []
            assert pair.driver.locked_bytes == 2 * staged.SHARED_REGION_BYTES, "of the next trials"


def held() -> tuple[int, int]:
    """How many regions and boards this process has mapped, and how many files are open."""
    gc.collect()
    with open("/proc/self/maps") as maps:
        return sum("diffusion-partitioner" in line for line in maps), len(os.listdir("/proc/self/fd"))


def test_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    before = held()
    for _ in range(3):
        with hosts(monkeypatch) as pair:
            exchange(pair)
            pair.send(8)  # nobody takes it
        assert pair.driver.locked_bytes == 0
        del pair
    assert held() == before


def mailbox_of(rank: int, lines: Mapping[int, socket.socket]) -> SameMachineMailbox:
    def failed(error: BaseException) -> None:
        made.fail(error)

    device = torch.device("cuda", rank)
    made = SameMachineMailbox(rank, lines, device, plan_hash=7, announce_timeout_s=5, on_error=failed)
    made.register(0, WIRES)
    return made


def test_a_process_that_dies_with_copies_under_way_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes, each with a driver of its own. The last message's word is never set."""
    before = held()
    with fake_staging(monkeypatch) as (_, driver):
        ours, theirs = new_line()
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                ours.close()
                box = mailbox_of(0, {1: theirs})
                while box._channels[1]._chosen == 0:
                    assert box.kept == 0
                for step in range(3):
                    driver.late = step == 2
                    box.send([1], MessageKey(0, 0, 0, step), torch.full((2, 3), float(step), device="cuda:0"))
                os.kill(os.getpid(), signal.SIGKILL)
            os._exit(1)
        theirs.close()
        box = mailbox_of(1, {0: ours})
        for step in range(2):
            box.wait(MessageKey(0, 0, 0, step), timeout_s=5)
            assert box.take(MessageKey(0, 0, 0, step)).cpu().unique().tolist() == [step]
        with pytest.raises(PeerLost):
            box.wait(MessageKey(0, 0, 0, 2), timeout_s=5)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        assert driver.locked_bytes > 0
        box.close()
        assert driver.locked_bytes == 0
        del box, ours, theirs
    assert held() == before
