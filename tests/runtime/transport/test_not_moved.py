"""A message that could not be moved: for lack of memory, or since the GPU has failed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from runtime.errors import RankError, RankOutOfMemory
from runtime.transport.mailbox import MessageKey
from tests.support.mailboxes import same_machine_pair

FAILED = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


CAUSES = pytest.mark.parametrize(
    ("cause", "kind", "said"),
    [
        (FAILED, RankError, "cannot {} %a: CUDA error: an illegal memory access"),
        (torch.AcceleratorError("CUDA error: out of memory"), RankOutOfMemory, r"no memory to {} %a .*CUDA error"),
        (torch.OutOfMemoryError("Tried to allocate 2.00 KiB."), RankOutOfMemory, r"no memory to {} %a .*2.00 KiB"),
        (RuntimeError("cuMemHostRegister_v2: not permitted"), RankOutOfMemory, r"no memory to {} %a .*not permitted"),
    ],
    ids=["failed", "accelerator full", "full", "driver"],
)
KEY = MessageKey(0, 0, 0, 0)


def _raising(cause: RuntimeError) -> Any:
    def fail(*_: Any) -> Any:
        raise cause

    return fail


@CAUSES
def test_a_gpu_that_failed_is_not_called_full_by_a_sender(
    cause: RuntimeError, kind: type[RankError], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.transport.shared_memory.HostSlot.write", _raising(cause))
    with same_machine_pair() as (sender, _, _), pytest.raises(kind, match=said.format("send")) as caught:
        sender.send([1], KEY, torch.ones(2, 3))
    assert type(caught.value) is kind
    assert caught.value.__cause__ is cause


@CAUSES
def test_nor_by_a_reader(
    cause: RuntimeError, kind: type[RankError], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.transport.memory.Slot.is_written", _raising(cause))
    with same_machine_pair() as (sender, receiver, errors):
        sender.send([1], KEY, torch.ones(2, 3))
        with pytest.raises(kind, match=said.format("receive")):
            receiver.wait(KEY, timeout_s=5)
    assert [type(error) for error in errors] == [kind]
