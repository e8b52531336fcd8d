"""A process that returns messages through shared memory of a GPU: ``python -m tests.support.ipc_peer DESCRIPTOR KIND``.

Over the socket DESCRIPTOR come the ends of lines, one after the other; over each, MESSAGES messages, which are sent
back one larger. KIND: "near", "far" (as if its GPU were another than the sender's) or "refused" (it cannot open memory
of GPUs, so that messages to it go through page-locked memory of the host).
"""

from __future__ import annotations

import gc
import socket
import sys
import weakref
from typing import Any

import torch

from partitioner.graph.nodes import TensorMeta
from runtime.transport import cuda_driver, ipc, staged
from runtime.transport.ipc import DeviceRegion
from runtime.transport.mailbox import Expected, MessageKey
from runtime.transport.same_machine import SameMachineMailbox
from runtime.transport.staged import LockedRegion

MESSAGES = 24
SHAPE = (512, 1024)
WIRES = tuple(Expected(f"from {rank}", TensorMeta(SHAPE, (SHAPE[1], 1), "float32"), (rank,)) for rank in (0, 1))
LATE = 1_500_000  # cycles, nearly a millisecond


def mailbox_of(rank: int, line: socket.socket) -> SameMachineMailbox:
    def failed(error: BaseException) -> None:
        made.fail(error)

    made = SameMachineMailbox(
        rank, {1 - rank: line}, torch.device("cuda:0"), plan_hash=7, announce_timeout_s=5, on_error=failed
    )
    made.register(0, WIRES)
    return made


def behave(kind: str) -> None:
    if kind == "far":
        cuda_driver.device_of = lambda address: -1
    elif kind == "refused":
        cuda_driver.open_exported = refuse


def refuse(index: int, what: Any) -> Any:
    """Stands for the driver's ``open_exported`` or ``allocate``."""
    raise RuntimeError("as in some virtual machines")


_regions: weakref.WeakSet[DeviceRegion | LockedRegion] = weakref.WeakSet()


class _CountedRegion(DeviceRegion):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        _regions.add(self)


class _CountedLockedRegion(LockedRegion):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        _regions.add(self)


ipc.DeviceRegion = _CountedRegion  # type: ignore[misc]
staged.LockedRegion = _CountedLockedRegion  # type: ignore[misc]


def regions_held() -> int:
    """How many regions of shared memory of GPUs, or page-locked memory, this process has."""
    if _regions:
        gc.collect()
    return len(_regions)


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    behave(sys.argv[2])
    while True:
        word, files, _, _ = socket.recv_fds(control, 1, 1)
        if not word:
            return
        box = mailbox_of(1, socket.socket(fileno=files[0]))
        for step in range(MESSAGES):
            key = MessageKey(0, 0, 0, step)
            box.wait(key, timeout_s=30)
            if step % 3 == 0:
                torch.cuda._sleep(LATE)
            box.send([0], MessageKey(0, 1, 0, step), box.take(key) + 1)
        torch.cuda.synchronize()
        control.recv(1)
        box.close()
        control.send(bytes([regions_held()]))


if __name__ == "__main__":
    main()
