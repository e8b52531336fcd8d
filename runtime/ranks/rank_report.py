"""Report: what a rank is doing and has done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from runtime.devices.memory import resident_bytes
from runtime.worker.recording import Mark
from runtime.worker.worker import Worker


@dataclass(frozen=True)
class Report:
    """What one rank is doing and has done.

    steps: evaluations done. step: the one begun last. busy: within an evaluation or a load.
    waiting_for: the value that it waits for and the rank that sends it, None while it computes or is idle.
    send_seconds: time spent in handing over what it computed. wait_seconds: time spent in waiting for messages.
    parameter_bytes: of the parameters that it holds. slot_bytes: of the memory that it has made for messages, which it
    shares with their readers; 0 where they are passed on without. resident_bytes: memory of its process.
    started_bytes: the same when the rank began and held nothing. trajectories: of how many, or micro-batches of one, it
    keeps something. marks: what it recorded, where recording was asked for.
    """

    steps: int
    step: int | None
    busy: bool
    waiting_for: tuple[str, int] | None
    sent_bytes: int
    send_seconds: float
    wait_seconds: float
    parameter_bytes: int
    resident_bytes: int
    started_bytes: int = 0
    trajectories: int = 0
    slot_bytes: int = 0
    marks: tuple[Mark, ...] = field(default=(), repr=False)


def report(workers: Sequence[Worker]) -> Report:
    """The report of a rank, whose workers may be at work in another thread."""
    tensors = [tensor for worker in workers for tensor in list(worker.parameters.values())]
    held = {tensor.data_ptr(): tensor.nbytes for tensor in tensors}  # shared ones count once
    mailbox, latest = workers[0].mailbox, latest_of(workers)
    return Report(
        steps=sum(worker.steps_done for worker in workers),
        step=latest.step,
        busy=latest.busy,
        waiting_for=latest.waiting_for(),
        sent_bytes=mailbox.sent_bytes,
        send_seconds=sum(worker.send_seconds for worker in workers),
        wait_seconds=mailbox.wait_seconds,
        parameter_bytes=sum(held.values()),
        resident_bytes=resident_bytes(),
        started_bytes=workers[0].started_bytes,
        trajectories=sum(worker.trajectories_kept for worker in workers),
        slot_bytes=mailbox.slot_bytes,
        marks=tuple(latest.recorder.marks) if latest.recorder is not None else (),
    )


def latest_of(workers: Sequence[Worker]) -> Worker:
    """The worker of a rank that is at work, or else was last."""
    return max(workers, key=lambda worker: (worker.busy, worker.begun))
