"""Lagged tensors: which messages a predictor observes, and what is read."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from runtime.worker.lagged import LaggedTensor
from runtime.worker.predictor import Linear
from runtime.worker.waiting import Waiting


def read(lagged: LaggedTensor, step: int, newest: int, received: list[int]) -> float:
    """Read, where the message of step s holds s squared; note the steps whose messages were taken."""

    def receive(wanted: int) -> Waiting[torch.Tensor]:
        received.append(wanted)
        return torch.tensor(float(wanted) ** 2)
        yield

    work: Any = lagged.read(step, newest, receive)
    with pytest.raises(StopIteration) as end:
        next(work)
    return float(end.value.value)


def test_every_message_up_to_the_newest_is_observed_once_and_in_order() -> None:
    lagged, received = LaggedTensor(Linear()), []
    lagged.announce([0, 1])
    assert read(lagged, 1, 1, received) == 1, "its own step's message, as it is"
    lagged.announce([2])
    lagged.announce([3])
    assert received == [0, 1]
    assert read(lagged, 3, 2, received) == 4 + 3, "estimated from 1 and 4"
    assert received == [0, 1, 2]
    assert read(lagged, 4, 2, received) == 4 + 6, "nothing new is there, and the estimate goes further"
    assert read(lagged, 4, 3, received) == 9 + 5
    assert received == [0, 1, 2, 3]
