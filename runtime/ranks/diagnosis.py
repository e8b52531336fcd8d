"""diagnose: which rank holds the others up when a step takes too long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from runtime.errors import RankStalled
from runtime.ranks.rank_report import Report


def diagnose(reports: Mapping[int, Report], component_of: Sequence[int], timeout_s: float) -> RankStalled:
    """Name the rank that holds the driver up: the end of the chain of ranks that wait for each other.

    Args:
        reports: by rank, of the ranks that answered; the driver's, rank 0, is among them.
        component_of: rank -> component.
        timeout_s: the deadline that the step has missed, for the text.

    Returns:
        The error to raise; it names the rank, the tensor that another waits for, and the whole chain.
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
    elif known.step is None:
        what = "it has not begun its first step"
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
