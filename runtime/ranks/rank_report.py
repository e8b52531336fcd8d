"""Report: what a rank is doing and has done."""

from __future__ import annotations

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
    parameter_bytes: of the parameters that it holds. resident_bytes: memory of its process. started_bytes: the same
    when the rank began and held nothing. trajectories: of how many, or micro-batches of one, it keeps something.
    marks: what it recorded, where recording was asked for.
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
    marks: tuple[Mark, ...] = field(default=(), repr=False)


def report(worker: Worker) -> Report:
    """The report of a worker, which may be at work in another thread."""
    held = {tensor.data_ptr(): tensor.nbytes for tensor in list(worker.parameters.values())}  # shared ones count once
    return Report(
        steps=worker.steps_done,
        step=worker.step,
        busy=worker.busy,
        waiting_for=worker.waiting_for(),
        sent_bytes=worker.mailbox.sent_bytes,
        send_seconds=worker.send_seconds,
        wait_seconds=worker.mailbox.wait_seconds,
        parameter_bytes=sum(held.values()),
        resident_bytes=resident_bytes(),
        started_bytes=worker.started_bytes,
        trajectories=worker.trajectories_kept,
        marks=tuple(worker.recorder.marks) if worker.recorder is not None else (),
    )
