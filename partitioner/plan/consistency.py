"""What a plan says of branches, periods and boundary tensors must hold together."""

from __future__ import annotations

from collections.abc import Sequence

from partitioner.plan.fields import shown_briefly
from partitioner.plan.placement import KeyPlacement
from partitioner.plan.records import Boundary
from partitioner.search.mode import Mode


def check_branches(branches: int, streams: int, branch_rows: Sequence[int], calls_per_step: int) -> None:
    """ValueError if a plan's streams cannot share its branches and the calls of its steps."""
    if branches % streams:
        raise ValueError(
            f"branches is {branches}, expected a multiple of streams, which is {streams}: each stream "
            "has as many branches"
        )
    each = branches // streams
    if len(branch_rows) not in (0, each):
        raise ValueError(
            f"branch_rows has {len(branch_rows)} entries, expected none or {each}: one for each branch of a stream"
        )
    if calls_per_step < streams:
        raise ValueError(
            f"calls_per_step is {calls_per_step}, expected at least streams, which is {streams}: each "
            "stream has a call of its own in each step"
        )


def check_periods(period: int, periods: Sequence[int], mode: Mode) -> None:
    """ValueError if a plan's components recompute in steps in which they must not, or do not where they must."""
    if max(periods) != period:
        raise ValueError(f"period is {period}, the largest of periods is {max(periods)}")
    if periods[-1] != 1:
        raise ValueError(
            f"periods ends with {periods[-1]}, expected 1: component {len(periods) - 1} makes the output, "
            "which is wanted in every step"
        )
    if mode == "lookahead" and period != 1:
        raise ValueError(f"period is {period}, expected 1: look-ahead recomputes every component in every step")


def check_boundaries(boundaries: Sequence[Boundary], placement: KeyPlacement, components: int, mode: Mode) -> None:
    """ValueError if a plan's boundary tensors are not those of its placement, or its mode cannot send them."""
    seen: set[str] = set()
    for boundary in boundaries:
        key = shown_briefly(boundary.key)
        if boundary.key in seen:
            raise ValueError(f"boundary {key} stands twice")
        seen.add(boundary.key)
        if placement.get(boundary.key) != boundary.source:
            raise ValueError(f"boundary {key} is not placed on its source, component {boundary.source}")
        if boundary.readers[-1] >= components:
            raise ValueError(f"boundary {key} is read by component {boundary.readers[-1]} of {components}")
        if mode == "lookahead" and boundary.readers[0] < boundary.source:
            raise ValueError(f"boundary {key} goes back along the chain, which look-ahead cannot do")
