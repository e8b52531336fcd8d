"""refinement: the components of a split measured whole, the costs of their nodes rescaled, and solved again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from partitioner.candidates import Candidate, Options, Progress, solve_candidate
from partitioner.cost import GraphCosts
from partitioner.edge_drift import EdgeDrift
from partitioner.errors import InfeasibleError
from partitioner.fleet import Fleet
from partitioner.graph import build_problem
from partitioner.ir import TracedGraph
from partitioner.problem import Problem
from partitioner.solve import Solver

ComponentTimer = Callable[[TracedGraph, Mapping[str, int], int], list[float]]  # component_timing.time_components

ROUNDS = 3  # at most; the second rarely moves a border


@dataclass(frozen=True)
class Refinement:
    """Components measured whole, by round: how long they were predicted and found to take, in ms.

    candidate, problem: of the last split, under the costs that the measurements gave. scale: these over the old costs.
    """

    rounds: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...]
    candidate: Candidate = field(repr=False)
    problem: Problem = field(repr=False)
    scale: float

    @property
    def errors(self) -> tuple[float, ...]:
        """The largest relative error of a prediction, by round."""
        return tuple(
            max(abs(p / m - 1) for p, m in zip(predicted, measured, strict=True)) for predicted, measured in self.rounds
        )


def refine_split(
    graph: TracedGraph,
    costs: GraphCosts,
    chosen: Candidate,
    fleet: Fleet,
    options: Options,
    timer: ComponentTimer,
    progress: Progress,
    drift: EdgeDrift | None = None,
) -> Refinement:
    """Measure the components whole, rescale the costs of their nodes, solve again, until the split stays."""
    before = sum(_latent_ms(graph, costs, chosen.placed, chosen.components))
    rounds = []
    while True:
        progress("measuring the components whole")
        predicted = _latent_ms(graph, costs, chosen.placed, chosen.components)
        measured = timer(graph, chosen.placed, chosen.components)
        rounds.append((tuple(predicted), tuple(measured)))
        factors = [m / p if p > 0 else 1.0 for p, m in zip(predicted, measured, strict=True)]
        scaled = dict(costs.nodes)
        for name, k in chosen.placed.items():
            scaled[name] = dataclasses.replace(scaled[name], ms=scaled[name].ms * factors[k])
        costs = dataclasses.replace(costs, nodes=scaled)
        problem = build_problem(graph, costs, None if drift is None else drift.weights)
        placed = chosen.placed
        solver = Solver(problem)
        chosen = solve_candidate(solver, chosen.branches, chosen.components, chosen.mode, fleet, options, drift)
        if chosen.reason is not None:
            raise InfeasibleError(chosen.reason)
        if chosen.placed == placed or len(rounds) == ROUNDS:
            return Refinement(tuple(rounds), chosen, problem, sum(measured) / before if before > 0 else 1.0)


def _latent_ms(graph: TracedGraph, costs: GraphCosts, placed: Mapping[str, int], components: int) -> list[float]:
    """Time of each component's latent nodes on the device of the costs."""
    found = [0.0] * components
    for node in graph.latent_nodes:
        found[placed[node.name]] += costs.nodes[node.name].ms
    return found
