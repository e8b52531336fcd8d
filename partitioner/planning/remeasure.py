"""refine_split: measure the components of a split whole, rescale the costs of their nodes, and solve again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from partitioner.costs.model import CostModel
from partitioner.costs.node_costs import GraphCosts
from partitioner.errors import InfeasibleError
from partitioner.fleet import Fleet
from partitioner.graph.ir import TracedGraph
from partitioner.plan.ranks import rank_of
from partitioner.planning.build_problem import build_problem
from partitioner.planning.candidates import Candidate, Solvers, rescored, solve_candidate
from partitioner.planning.options import Progress
from partitioner.search.problem import Problem
from partitioner.search.solver import Solver
from partitioner.staleness.edge_errors import EdgeErrors

CLOSE = 0.02  # how far the slowest component may be above the mean; measurements differ by as much
ROUNDS = 6  # at most


@dataclass(frozen=True)
class Round:
    """One split whose components were measured whole.

    Attributes:
        predicted_ms: Of each component's latent nodes, the sum of their costs.
        measured_ms: Of each component's latent nodes, run together.
        slowest: The slowest component over the mean, each relative to the speed of its device; 1.0 is perfect balance.
    """

    predicted_ms: tuple[float, ...]
    measured_ms: tuple[float, ...]
    slowest: float

    @property
    def error(self) -> float:
        """The largest relative error of a prediction."""
        return max(abs(p / m - 1) for p, m in zip(self.predicted_ms, self.measured_ms, strict=True))


@dataclass(frozen=True)
class Refinement:
    """What measuring whole components led to.

    Attributes:
        rounds: In order.
        best: The number of the round whose slowest component took least.
        candidate: The split of that round; its figures are by costs that agree with its measured components.
        problem: Of the same graph, by those costs.
        scale: Measured time of all components of that split over their time by the first costs.
    """

    rounds: tuple[Round, ...]
    best: int
    candidate: Candidate = field(repr=False)
    problem: Problem = field(repr=False)
    scale: float


def refine_split(
    graph: TracedGraph,
    costs: GraphCosts,
    chosen: Candidate,
    fleet: Fleet,
    model: CostModel,
    edge_errors: EdgeErrors | None = None,
    *,
    progress: Progress = lambda _: None,
) -> Refinement:
    """Measure the components whole, rescale the costs of their nodes, solve again; as often as that helps.

    Ends when the slowest component is within CLOSE of the mean, or when nothing improves: the split stays as it is, or
    its slowest component takes longer than that of the best split so far.

    Args:
        graph: Of one branch.
        costs: Of its nodes.
        chosen: The candidate to start from.
        fleet: The devices, with their speeds.
        model: What measures the components.
        edge_errors: Measured staleness of the graph's edges.
        progress: Called with a sentence before each measurement.
    """
    weights = None if edge_errors is None else edge_errors.weights
    calls = chosen.branching.calls
    first = sum(_latent_ms(graph, costs, chosen.placed, chosen.components))
    rounds: list[Round] = []
    best, least = 0, float("inf")
    found: Refinement | None = None
    while True:
        progress("measuring the components whole")
        placed = chosen.placed
        predicted = _latent_ms(graph, costs, placed, chosen.components)
        measured = model.time_components(graph, placed, chosen.components)
        finish, mean = _finish_ms(measured, chosen, fleet)
        rounds.append(Round(tuple(predicted), tuple(measured), finish / mean if mean > 0 else 1.0))
        costs = _rescaled(costs, placed, predicted, measured)
        problem = build_problem(graph, costs, weights, driver_ms=model.driver_ms / calls, calls=calls)
        if finish < least:
            best, least = len(rounds) - 1, finish
            scale = sum(measured) / first if first > 0 else 1.0
            found = Refinement((), best, rescored(problem, chosen, fleet), problem, scale)
        if best != len(rounds) - 1 or finish <= (1 + CLOSE) * mean or len(rounds) == ROUNDS:
            break
        chosen = solve_candidate(_only(Solver(problem)), chosen, fleet, edge_errors)
        if chosen.reason is not None:
            raise InfeasibleError(chosen.reason)
        if chosen.placed == placed:
            break
    assert found is not None
    return dataclasses.replace(found, rounds=tuple(rounds))


def _finish_ms(measured: Sequence[float], chosen: Candidate, fleet: Fleet) -> tuple[float, float]:
    """The time of the slowest component, and what every component would take if the work were spread evenly.

    Both are per call, and for the slowest of the devices that hold a component where there are several branches.
    """
    speeds = [
        min(fleet[chosen.device_of[rank_of(b, k, chosen.components)]].speed or 1.0 for b in range(chosen.branches))
        for k in range(chosen.components)
    ]
    rates = [speed * period for speed, period in zip(speeds, chosen.periods, strict=True)]
    finish = max(ms / rate for ms, rate in zip(measured, rates, strict=True))
    return finish, sum(measured) / sum(rates)


def _only(solver: Solver) -> Solvers:
    """One solver for all branches."""
    return lambda rows, calls: solver


def _rescaled(
    costs: GraphCosts, placed: Mapping[str, int], predicted: Sequence[float], measured: Sequence[float]
) -> GraphCosts:
    """Node costs whose sum over each component is what was measured of it."""
    factors = [m / p if p > 0 else 1.0 for p, m in zip(predicted, measured, strict=True)]
    scaled = dict(costs.nodes)
    for name, k in placed.items():
        scaled[name] = dataclasses.replace(scaled[name], ms=scaled[name].ms * factors[k])
    return dataclasses.replace(costs, nodes=scaled)


def _latent_ms(graph: TracedGraph, costs: GraphCosts, placed: Mapping[str, int], components: int) -> list[float]:
    """Time of each component's latent nodes on the device of the costs."""
    found = [0.0] * components
    for node in graph.latent_nodes:
        found[placed[node.name]] += costs.nodes[node.name].ms
    return found
