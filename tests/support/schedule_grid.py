"""A schedule drawn as a grid, so that tests can compare it with a literal one."""

from __future__ import annotations

from collections.abc import Sequence

from partitioner.plan.schedule import Schedule


def schedule_grid(schedule: Schedule, calls: Sequence[int]) -> str:
    """The schedule as a grid, one line per component: the calls that it runs at each call."""
    lines = []
    for component in range(schedule.components):
        cells = []
        for call in calls:
            own = [run for run in schedule.runs(call) if run.component == component]
            cells.append("+".join(f"{run.call}{'~' if run.lagged else ''}" for run in own) or ".")
        lines.append(f"{component}: " + " ".join(f"{cell:>5}" for cell in cells))
    return "\n".join(lines)
