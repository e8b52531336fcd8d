"""Work that waits for messages: alone, and several together."""

from __future__ import annotations

import pytest
import torch

from runtime.transport.local import LocalMailbox
from runtime.transport.mailbox import MessageKey
from runtime.worker.waiting import Waiting, run_to_end, together


def test_work_runs_to_its_end_without_gradients() -> None:
    mailbox = LocalMailbox(0, [], torch.device("cpu"))
    key = MessageKey(0, 0, 0, 0)
    mailbox.deliver(key, torch.ones(()))

    def work() -> Waiting[bool]:
        yield key
        return torch.is_grad_enabled()

    assert run_to_end(work(), mailbox) is False


def test_the_deadline_is_for_all_waits_together() -> None:
    mailbox = LocalMailbox(0, [], torch.device("cpu"))

    def work() -> Waiting[None]:
        while True:
            yield MessageKey(0, 0, 0, 0)

    with pytest.raises(TimeoutError):
        run_to_end(work(), mailbox, timeout_s=0.05)


def test_evaluations_together_go_on_while_one_of_them_waits() -> None:
    mailbox = LocalMailbox(0, [], torch.device("cpu"))
    keys = [MessageKey(0, 0, part, 0) for part in range(2)]
    order: list[str] = []

    def evaluation(part: int) -> Waiting[int]:
        order.append(f"{part} begins")
        while not mailbox.ready(keys[part]):
            yield keys[part]
        order.append(f"{part} ends")
        return 10 * part

    work = together([evaluation(0), evaluation(1)], mailbox)
    assert next(work) == keys[0]
    assert order == ["0 begins", "1 begins"]
    mailbox.deliver(keys[1], torch.zeros(()))
    assert next(work) == keys[0]
    assert order[2:] == ["1 ends"]
    mailbox.deliver(keys[0], torch.zeros(()))
    with pytest.raises(StopIteration) as end:
        next(work)
    assert end.value.value == [0, 10]
