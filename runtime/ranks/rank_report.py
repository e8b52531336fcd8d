"""Report: what a rank is doing and has done; and who holds up whom when a step takes too long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from runtime.devices.memory import resident_bytes as resident_bytes
from runtime.errors import RankStalled
from runtime.worker.recording import Mark
from runtime.worker.worker import Worker


@dataclass(frozen=True)
class Report:
    """steps: evaluations done; step: the one begun last. busy: within an evaluation or a load.

    waiting_for: the value that it waits for and the rank that sends it, None while it computes or is idle.
    send_seconds: in handing over what it has computed. resident_bytes: of its process; started_bytes: the same, when
    the rank began and had nothing. marks: what it recorded, if it was to.
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
    marks: tuple[Mark, ...] = field(default=(), repr=False)


def report(worker: Worker) -> Report:
    """What the worker is doing and has done."""
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
        marks=tuple(worker.recorder.marks) if worker.recorder is not None else (),
    )


def diagnose(reports: Mapping[int, Report], component_of: Sequence[int], timeout_s: float) -> RankStalled:
    """Name the rank that holds the driver up: the end of the chain of ranks that wait for each other.

    reports: of the ranks that answered. component_of: rank -> component.
    """
    rank, value = 0, None
    chain: list[str] = []
    while (known := reports.get(rank)) is not None and known.waiting_for is not None and len(chain) < len(component_of):
        value, sender = known.waiting_for
        chain.append(f"rank {rank} waits for %{value} of rank {sender}")
        rank = sender
    if known is None:
        what = "it does not answer"
    elif known.waiting_for is not None:
        what = "it and others wait for each other"
    elif known.busy:
        what = f"it is still computing step {known.step}"
    else:
        what = f"it has done step {known.step} and has nothing to do"
    progress = ", ".join(f"rank {r}: {reports[r].steps if r in reports else '?'}" for r in range(len(component_of)))
    return RankStalled(
        f"{what}. No end of the step within {timeout_s:g} s: {'; '.join(chain) or 'rank 0 waits for nobody'}. "
        f"Evaluations done: {progress}. If steps may take this long, allow more with --step-timeout",
        rank=rank,
        component=component_of[rank],
        step=known.step if known is not None else reports[0].step,
        value=value,
    )
