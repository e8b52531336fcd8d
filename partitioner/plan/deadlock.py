"""Whether programs end: they are played by themselves before any rank runs them."""

from __future__ import annotations

from collections.abc import Sequence

from partitioner.errors import PlanError
from partitioner.plan.program import Program, Receive, Send


def check_programs(programs: Sequence[Program]) -> None:
    """Prove by simulation that an exact evaluation ends: every Receive is met by an earlier or other Send.

    Raises PlanError that shows the instruction each component is stuck at. Sends do not block.
    """
    position = [0] * len(programs)
    arrived: set[tuple[str, int]] = set()
    moved = True
    while moved:
        moved = False
        for k, program in enumerate(programs):
            while position[k] < len(program.instructions):
                step = program.instructions[position[k]]
                if isinstance(step, Receive) and (step.value, k) not in arrived:
                    break
                if isinstance(step, Send):
                    arrived.update((step.value, reader) for reader in step.readers)
                position[k] += 1
                moved = True
    stuck = [
        f"component {k} at {program.instructions[position[k]]}"
        for k, program in enumerate(programs)
        if position[k] < len(program.instructions)
    ]
    if stuck:
        raise PlanError("these programs wait for each other forever: " + "; ".join(stuck))
