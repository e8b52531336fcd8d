"""find_candidates: every way to use the devices, split and scored.

Two branches halve the guidance batch, which is exact, so quality prefers them; then comes look-ahead, in which nothing
that is read is stale; then async mode. Over all the devices both modes are solved, over fewer only look-ahead. Four
devices and a guidance batch give, for example:

    branches  components  mode
        1         4       look-ahead, async
        1         3       look-ahead          one device idle
        1         2       look-ahead          two devices idle
        2         2       look-ahead, async
        2         1       exact               two devices idle
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from partitioner.errors import InfeasibleError
from partitioner.fleet import Fleet, as_devices, paired
from partitioner.plan.ranks import rank_of
from partitioner.planning.options import PlanOptions, Progress
from partitioner.search.devices import Devices
from partitioner.search.evaluate import Evaluation, evaluate
from partitioner.search.mode import Mode
from partitioner.search.problem import Problem
from partitioner.search.solver import EPSILON, Solver
from partitioner.search.split import Split
from partitioner.staleness.edge_errors import EdgeErrors, least_error

RESCORED = (EPSILON / 4, EPSILON / 2, EPSILON)  # the best split for each is rescored by its measured error
MOST_SPARED = 8  # components in a chain that leaves devices idle: longer ones are only solved with all devices


@dataclass(frozen=True)
class Shape:
    """A way to use some devices, before it is known what each of them computes.

    Attributes:
        branches: 2 where the guidance batch is halved, else 1.
        components: Of one branch.
        period: Every how many steps all components but the last recompute.
        mode: How components overlap.
    """

    branches: int
    components: int
    period: int
    mode: Mode

    @property
    def ranks(self) -> int:
        """How many devices it uses."""
        return self.branches * self.components

    @property
    def is_stale(self) -> bool:
        """Whether components read what is a step old."""
        return self.mode == "async" and self.components > 1

    @property
    def periods(self) -> tuple[int, ...]:
        """Of each component; the last one makes the output and computes in every step."""
        return (self.period,) * (self.components - 1) + (1,)


@dataclass(frozen=True)
class Candidate(Shape):
    """A shape with its split, or with the reason why there is none.

    Attributes:
        reason: Why there is no split; None where there is one, and only then the rest holds.
        step_ms: Time of a step, communication included; the mean over a period.
        compute_ms: The same without communication.
        lower_bound_ms: No split of this shape computes in less.
        placed: Latent node name -> component.
        device_of: Number of the fleet's device of each rank.
        split: As the solver gave it.
    """

    reason: str | None = None
    step_ms: float = math.inf
    compute_ms: float = math.inf
    lower_bound_ms: float = math.inf
    placed: Mapping[str, int] = field(default_factory=dict, repr=False)
    device_of: tuple[int, ...] = ()
    split: Split | None = field(default=None, repr=False)

    @property
    def evaluation(self) -> Evaluation:
        """The figures of one branch; only where there is a split."""
        assert self.split is not None
        return self.split.evaluation

    @property
    def bytes_per_step(self) -> int:
        """What all branches send in a step."""
        return self.branches * self.evaluation.bytes_per_step

    @property
    def memory_bytes(self) -> int:
        """Of the rank that holds most."""
        return max(c.memory_bytes for c in self.evaluation.components)


def find_candidates(
    problems: Mapping[int, Problem],
    fleet: Fleet,
    options: PlanOptions,
    progress: Progress,
    edge_errors: EdgeErrors | None = None,
) -> Iterator[Candidate]:
    """Solve every choice of branches x components x mode, most components first.

    Args:
        problems: Number of branches -> the problem of one of them.
        fleet: The devices, with their speeds.
        options: What restricts the choice.
        progress: Called with a sentence before each number of branches.
        edge_errors: Where the problems' staleness was measured: of several good splits in async mode the one of the
            least summed error is taken.
    """
    for branches, problem in problems.items():
        if options.branches not in (None, branches):
            continue
        most = len(fleet) // branches
        progress(f"splitting over {branches} x {most} devices")
        solver = Solver(problem)
        fewest = 1 if branches == 2 or most == 1 else 2
        for components in (most, *range(min(most - 1, MOST_SPARED), fewest - 1, -1)):
            period = options.period if components > 1 else 1
            for mode in _modes(components, components == most, options):
                yield solve_candidate(solver, Shape(branches, components, period, mode), fleet, edge_errors)


def _modes(components: int, with_all_devices: bool, options: PlanOptions) -> tuple[Mode, ...]:
    if options.mode is not None:
        return (options.mode,)
    if components == 1:
        return ("lookahead",)
    if options.period > 1:
        return ("async",)
    return ("lookahead", "async") if with_all_devices else ("lookahead",)


def seats_of(fleet: Fleet, branches: int, components: int) -> tuple[Devices, list[tuple[int, ...]]]:
    """The devices of one branch, the fastest where there are more than components.

    Returns:
        The devices as the solver takes them, and for each of them the numbers of the fleet's devices that it stands
        for, one per branch.
    """
    devices, seats = paired(fleet) if branches == 2 else (as_devices(fleet), [(d,) for d in range(len(fleet))])
    fastest = sorted(range(len(devices)), key=lambda d: (-devices.speeds[d], -devices.memory_bytes[d], d))
    kept = sorted(fastest[:components])
    return devices.reordered(kept), [seats[d] for d in kept]


def solve_candidate(solver: Solver, shape: Shape, fleet: Fleet, edge_errors: EdgeErrors | None = None) -> Candidate:
    """Split one branch's problem in that shape over the fleet; the candidate says why where that is impossible.

    Args:
        solver: Of the problem of one branch.
        shape: How many branches and components, and how they run.
        fleet: The devices, with their speeds.
        edge_errors: As for find_candidates.
    """
    devices, seats = seats_of(fleet, shape.branches, shape.components)
    unsolved = Candidate(shape.branches, shape.components, shape.period, shape.mode)
    try:
        split = _split(solver, devices, shape, edge_errors)
    except InfeasibleError as error:
        return replace(unsolved, reason=str(error))
    if not split.evaluation.feasible:
        needed = max(c.memory_bytes for c in split.evaluation.components)
        reason = f"one component needs {needed / 1e9:.2f} GB, more than its device has; use more or larger devices"
        return replace(unsolved, reason=reason)
    ranks = [0] * shape.ranks
    for k, d in enumerate(split.device_of):
        for branch in range(shape.branches):
            ranks[rank_of(branch, k, shape.components)] = seats[d][branch]
    return _scored(solver.problem, devices, split, replace(unsolved, device_of=tuple(ranks)))


def rescored(problem: Problem, candidate: Candidate, fleet: Fleet) -> Candidate:
    """The same placement, its figures under the costs of another problem of the same graph."""
    assert candidate.split is not None
    devices, _ = seats_of(fleet, candidate.branches, candidate.components)
    split = candidate.split
    figures = evaluate(problem, split.assignment, devices, candidate.mode, split.device_of)
    return _scored(problem, devices, replace(split, evaluation=figures), candidate)


def _scored(problem: Problem, devices: Devices, split: Split, candidate: Candidate) -> Candidate:
    """The candidate with a split and its figures."""
    rates = candidate.periods
    evaluation = split.evaluation
    bound = evaluation.lower_bound_ms
    if candidate.period > 1:
        bound = problem.total_ms / sum(rate * devices.speeds[d] for rate, d in zip(rates, split.device_of, strict=True))
    return replace(
        candidate,
        step_ms=max(c.step_ms / rate for c, rate in zip(evaluation.components, rates, strict=True)),
        compute_ms=max(c.load_ms / rate for c, rate in zip(evaluation.components, rates, strict=True)),
        lower_bound_ms=bound,
        placed=dict(zip(problem.names, split.assignment, strict=True)),
        split=split,
    )


def _split(solver: Solver, devices: Devices, shape: Shape, edge_errors: EdgeErrors | None) -> Split:
    """The solver's split.

    With a period P all components but the last have P steps for their work: the problem is split over P*(N-1)+1 equal
    devices, and each P of these in a row become one.
    """
    if shape.period == 1:
        if edge_errors is None or shape.mode == "lookahead":
            return solver.solve(devices, shape.mode)
        # a few good splits that differ: by staleness alone, and by bytes as well
        found = [solver.sweep(devices, shape.mode, epsilons=RESCORED, byte_weight=weight) for weight in (0.0, None)]
        return least_error(edge_errors, solver.problem, [split for splits in found for split in splits])
    if len(devices.kinds) > 1:
        raise InfeasibleError("a period above 1 needs equal devices; use --period 1")
    last = len(devices) - 1
    virtual = Devices.equal(
        shape.period * last + 1,
        speed=devices.speeds[0],
        link_gb_per_s=devices.link_gb_per_s[0],
        latency_ms=devices.latency_ms[0],
    )
    split = solver.solve(virtual, shape.mode)
    assignment = tuple(k // shape.period for k in split.assignment)
    figures = evaluate(solver.problem, assignment, devices, shape.mode)
    return Split(assignment, tuple(range(last + 1)), split.form, figures)
