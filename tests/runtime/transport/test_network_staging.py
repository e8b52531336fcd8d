"""Messages between GPUs of two machines through page-locked memory, on GPUs that are not there: no card has run this.

As in test_staged.py, fake GPUs and a fake driver find what is out of order, whatever the timing; sockets are real, and
so are their threads. Every line that orders something is left out in turn, and must be missed.
"""

from __future__ import annotations

import gc
import logging
import os
import time
from types import ModuleType
from typing import Any

import pytest
import torch

from runtime.transport import network_staging, socket_channel, staged
from runtime.transport.mailbox import PARAMETER_CONTEXT, Expected, MessageKey
from tests.support.fake_driver import failing_trials
from tests.support.far_hosts import Hosts, machines
from tests.support.left_out import changed, lines
from tests.support.mailboxes import meta
from tests.support.trouble import wait_until


def pass_on(pair: Hosts, steps: range, kept: int = 3) -> list[tuple[int, Any]]:
    """Messages that are taken some steps after they were sent, as a predictor keeps them; what was computed of each."""
    computed = []
    for step in steps:
        pair.send(step)
        if step - kept >= steps.start:
            computed.append((step - kept, pair.take(step - kept)))
    return computed + [(step, pair.take(step)) for step in steps[-kept:]]


def test_messages_arrive_and_in_the_long_run_no_host_waits_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with machines(monkeypatch) as pair:
        waits, rounds = -1, 0
        while pair.cuda.waits != waits:  # at first there are too few landings
            waits, first = pair.cuda.waits, 8 * rounds
            computed = pass_on(pair, range(first, first + 8))
            if pair.cuda.waits != waits:
                assert [pair.values(tensor) for _, tensor in computed] == [[step + 1] for step, _ in computed]
            rounds += 1
            assert rounds < 20
        assert [pair.values(tensor) for _, tensor in computed] == [[step + 1] for step, _ in computed]
        wait_until(lambda: sum(landing.taken for landing in pair.receiver._staging._landings) <= 3)
        assert len(pair.sender._staging._sent_from) <= 6
        assert pair.sender.slot_bytes == pair.sender._staging.slot_bytes > 0
        cuda, driver = pair.cuda, pair.driver
        del computed
    assert cuda.errors == []
    assert driver.locked_bytes == 0
    assert cuda.used[0] == 0


def test_a_message_is_not_sent_before_its_word_is_set_nor_is_its_slot_used_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with machines(monkeypatch) as pair:
        pair.driver.late = True
        for step in range(3):
            pair.send(step)  # without waiting
        time.sleep(0.05)
        assert pair.look(1) == 0
        with pytest.raises(TimeoutError):
            pair.receiver.wait(MessageKey(0, 0, 0, 0), timeout_s=0.01)
        pair.driver.settle()
        assert [pair.values(pair.take(step)) for step in range(3)] == [[1], [2], [3]]
        assert pair.cuda.errors == []


def test_a_cpus_tensor_and_parameters_go_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    with machines(monkeypatch) as pair:
        before = len(pair.sender._staging._sent_from)
        with pair.on(0):
            pair.sender.send([1], MessageKey(0, 0, 0, 0), torch.ones(2, 3))
            pair.sender.send([1], MessageKey(0, 0, PARAMETER_CONTEXT, 0), torch.ones(2, 3, device="cuda:0"))
            pair.sender.send([1], MessageKey(0, 2, 0, 0), torch.ones(0, 3, dtype=torch.bfloat16, device="cuda:0"))
        assert len(pair.sender._staging._sent_from) == before
        with pair.on(1):
            for key in (MessageKey(0, 0, 0, 0), MessageKey(0, 0, PARAMETER_CONTEXT, 0), MessageKey(0, 2, 0, 0)):
                pair.receiver.wait(key, timeout_s=5)
                taken = pair.receiver.take(key)
                assert taken.eq(1).all()
                assert taken.device.type == "cpu" or key.context != PARAMETER_CONTEXT


def test_messages_of_tables_that_are_forgotten_are_dropped_and_their_landings_used_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with machines(monkeypatch) as pair:
        for table in range(1, 9):
            pair.open(table)
            pair.send(0, table)
            if table % 2:
                wait_until(lambda: bool(pair.receiver._landed))
            pair.drop(table)
            wait_until(lambda: pair.look(1) == 0 and not pair.receiver._landed)
        pair.send(0)
        assert pair.values(pair.take(0)) == [1]
        assert sum(landing.taken for landing in pair.receiver._staging._landings) <= 1
        assert pair.cuda.errors == []


CHANGED = [
    *lines(
        network_staging,
        ("if before.is_over and slot.is_free() and _fits", "if _fits"),
        ("if not landing.taken and _fits", "if _fits"),
        ("self.is_there = slot.is_free", "self.is_there = lambda: True"),
        ("torch.cuda.current_stream(self.device).wait_event(there)", "pass"),
    ),
    *lines(
        socket_channel,
        ("(staged is None or staged.is_there())", "True"),
        ("if staged is not None and not staged.is_there()", "if False"),
    ),
]


@pytest.mark.parametrize(("module", "line", "to"), CHANGED)
def test_every_line_that_orders_something_is_missed_where_it_is_left_out(
    module: ModuleType, line: str, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {network_staging: "staging", socket_channel: "sockets"}
    with machines(monkeypatch, **{places[module]: changed(module, line, to)}) as pair:
        for late in (False, True):
            pair.driver.late = late
            for step in range(6 * late, 6 * late + 6):
                pair.send(step)
                time.sleep(0.002)
        pair.driver.settle()
        for step in range(12):
            pair.take(step)
        errors = pair.cuda.errors
    gc.collect()
    assert errors, "nobody misses it"


@pytest.mark.parametrize(("driven", "why"), failing_trials("what comes from there is not what was written"))
def test_where_a_trial_fails_messages_wait_for_the_gpu(
    driven: dict[str, Any], why: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(network_staging, "_TRIAL_S", 0.01)
    monkeypatch.setattr(staged, "END_S", 0.01)
    with caplog.at_level(logging.WARNING, "runtime"), machines(monkeypatch, **driven) as pair:
        assert pair.sender._staging is pair.receiver._staging is None
        for step in range(3):
            pair.send(step)
            assert pair.values(pair.take(step)) == [step + 1]
    assert [record.getMessage() for record in caplog.records] == [
        f"cuda:{rank} cannot use page-locked memory of the host: {why}. Messages to and from other machines go through "
        "the host's memory, and wait for it"
        for rank in range(2)
    ]


def test_where_no_more_can_be_locked_messages_wait_for_the_gpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(staged, "SHARED_REGION_BYTES", 1 << 21)
    with machines(monkeypatch) as pair, caplog.at_level(logging.WARNING, "runtime"):
        pair.send(0)
        assert pair.values(pair.take(0)) == [1]
        monkeypatch.setattr(staged, "free_bytes", lambda device: (1 << 22) - 1)
        pair.open(1, [Expected("a", meta(1 << 19, 1), (0,))])
        for step in range(2):
            pair.send(step, 1, (1 << 19, 1))
        pair.send(1)
        for step in range(2):
            assert pair.values(pair.take(step, 1)) == [step + 1]
        assert pair.values(pair.take(1)) == [2]
        assert pair.cuda.errors == []
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2, "each side, once"
    assert all(
        "there is no more page-locked memory for messages to and from other machines (of 4194303" in s for s in said
    )


def test_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def held() -> tuple[int, int]:
        gc.collect()
        with open("/proc/self/maps") as maps:
            return sum("diffusion-partitioner" in line for line in maps), len(os.listdir("/proc/self/fd"))

    before = held()
    for _ in range(3):
        with machines(monkeypatch) as pair:
            pass_on(pair, range(8))
            pair.send(8)  # nobody takes it
        assert pair.driver.locked_bytes == 0
        assert pair.cuda.errors == []
        del pair
    assert held() == before


def test_a_cpu_has_none() -> None:
    assert network_staging.network_staging(torch.device("cpu")) is None
