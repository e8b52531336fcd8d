"""in_microbatches: whether the exact steps of a plan for look-ahead are done sooner in parts of their rows.

In an exact step the components of a chain wait for each other. With the rows of a call (guidance in one batch has two)
in M equal parts, one component computes a part while the next has the one before (runtime.worker.microbatches):

    exact step of the whole      sum of c_k(R)
    in M parts                   sum of c_k(R/M) + (M-1) * max c_k(R/M)

with c_k(r) the work of component k in a call of r rows. Two components of equal work and a guidance batch whose halves
cost half each come to 3/4.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from partitioner.costs.model import CostModel
from partitioner.costs.node_costs import GraphCosts
from partitioner.fleet import Fleet
from partitioner.planning.branching import Branching
from partitioner.planning.candidates import Candidate, Solvers, seats_of
from partitioner.planning.rows_apart import RowsApart
from partitioner.search.evaluate import ComponentFigures, evaluate
from partitioner.search.problem import Problem

# Parts that are considered at most. With 8, two components are busy 8/9 of an exact step's time; each number of rows is
# one more trace. Data sheets tell nothing of what launches, messages and small shapes cost: most of a small part.
MEASURED, ESTIMATED = 8, 2
ALIKE = 0.1  # by so much the measured shares of two costs may differ
WORTH = 0.95  # of the whole's time that parts may take at most: they are more messages, and another graph to keep


def most_parts(model: CostModel) -> int:
    """In how many parts the rows of a call may be computed, by where costs come from."""
    return ESTIMATED if model.kind == "data sheet" else MEASURED


def parts_of(branchings: Iterable[Branching], devices: int, counts: Iterable[int], most: int) -> set[int]:
    """The numbers of rows that 2, 4 and so on parts of a branch's calls have, where it can have several components.

    Args:
        branchings: the ways to share a step among branches.
        devices: how many there are.
        counts: the numbers of rows that a call can have.
        most: parts.

    >>> [parts_of([Branching((4,)), Branching((2, 2))], 2, (1, 2, 4), most) for most in (8, 2)]
    [{1, 2}, {2}]
    """
    several = {b.rows[0] for b in branchings if b.is_even and 2 * b.branches <= devices}
    numbers = [2**k for k in range(1, most.bit_length())]
    return {rows // parts for rows in several for parts in numbers if rows % parts == 0} & set(counts)


def in_microbatches(
    candidate: Candidate,
    solvers: Solvers,
    fleet: Fleet,
    costs: Mapping[int, GraphCosts],
    apart: RowsApart,
    most: int,
) -> Candidate:
    """The candidate with its exact steps in as many micro-batches as make them shortest; as it is where none do.

    Args:
        candidate: of any kind.
        solvers: of the problems of calls.
        fleet: the devices, with their speeds.
        costs: of calls, by their rows. Parts of other numbers of rows are not considered, nor those of which less was
            measured than of the whole: a plan promises nothing that compares a measurement with an estimate.
        apart: whether rows can be computed apart.
        most: micro-batches.
    """
    split, branching = candidate.split, candidate.branching
    if split is None or candidate.mode != "lookahead" or candidate.components == 1 or not branching.is_even:
        return candidate
    rows, calls = branching.rows[0], branching.calls
    devices, _ = seats_of(fleet, branching, candidate.components)
    whole, best = solvers(rows, calls).problem, candidate

    def figures_of(problem: Problem) -> tuple[ComponentFigures, ...]:
        return evaluate(problem, split.assignment, devices, candidate.mode, split.device_of).components

    whole_figures = figures_of(whole)
    whole_ms = sum(component.load_ms for component in whole_figures)
    driver_ms = sum(component.load_ms - component.work_ms for component in whole_figures)  # once, for all parts
    alike = (n for n, found in costs.items() if rows % n == 0 and found.covered >= costs[rows].covered - ALIKE)
    for part in sorted(set(alike) - {rows}, reverse=True):
        problem, parts = solvers(part, calls).problem, rows // part
        if parts > most or problem.names != whole.names or not apart.divides_into(part):
            continue
        figures = figures_of(problem)
        works = [max(c.work_ms, all_rows.work_ms / parts) for c, all_rows in zip(figures, whole_figures, strict=True)]
        factor = (sum(works) + (parts - 1) * max(works) + driver_ms) / whole_ms
        if factor < min(WORTH, best.exact_factor):
            best = replace(candidate, microbatches=parts, exact_factor=factor)
    return best
