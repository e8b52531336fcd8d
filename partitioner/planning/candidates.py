"""find_candidates: every way to use the devices, split and scored.

Branches are exact (see branching.py), so quality prefers them; then comes look-ahead, in which nothing that is read is
stale; then async mode. Over all the devices both modes are solved, over fewer only look-ahead. Four devices and a
guidance batch give, for example:

    branches  components  mode
        1         4       look-ahead, async
        1         3       look-ahead          one device idle
        1         2       look-ahead          two devices idle
        2         2       look-ahead, async
        2         1       exact               two devices idle
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from partitioner.errors import InfeasibleError
from partitioner.fleet import Fleet, grouped
from partitioner.plan.ranks import rank_of
from partitioner.planning.branching import Branching
from partitioner.planning.message_memory import component_memory
from partitioner.planning.options import PlanOptions, Progress
from partitioner.search.devices import Devices
from partitioner.search.evaluate import Evaluation, evaluate, scaled
from partitioner.search.mode import Mode
from partitioner.search.problem import Problem
from partitioner.search.solver import EPSILON, Solver
from partitioner.search.split import Split
from partitioner.staleness.edge_errors import EdgeErrors, least_error

RESCORED = (EPSILON / 4, EPSILON / 2, EPSILON)  # the best split for each is rescored by its measured error
Solvers = Callable[[int, int], Solver]  # (rows of a call, calls of a branch in a step) -> of the problem of one call
ROOMS = 4  # how often a split is looked for that fits the devices
MOST_SPARED = 8  # components in a chain that leaves devices idle: longer ones are only solved with all devices


@dataclass(frozen=True)
class Shape:
    """A way to use some devices, before it is known what each of them computes.

    Attributes:
        branching: How branches share a step.
        components: Of one branch.
        period: Every how many steps all components but the last recompute.
        mode: How components overlap.
    """

    branching: Branching
    components: int
    period: int
    mode: Mode

    @property
    def branches(self) -> int:
        """How many branches it has."""
        return self.branching.branches

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
        step_ms: Time of a step, all its calls and communication included; the mean over a period.
        compute_ms: The same without communication.
        lower_bound_ms: No split of this shape computes in less.
        placed: Latent node name -> component.
        device_of: Number of the fleet's device of each rank.
        split: Of the first branch, as the solver gave it.
        evaluations: The figures of one call, of each branch of one stream.
        microbatches: In so many parts the rows of an exact step's calls are computed.
        exact_factor: An exact step takes so much of what it would with its rows together.
    """

    reason: str | None = None
    step_ms: float = math.inf
    compute_ms: float = math.inf
    lower_bound_ms: float = math.inf
    placed: Mapping[str, int] = field(default_factory=dict, repr=False)
    device_of: tuple[int, ...] = ()
    split: Split | None = field(default=None, repr=False)
    evaluations: tuple[Evaluation, ...] = field(default=(), repr=False)
    microbatches: int = 1
    exact_factor: float = 1.0

    @property
    def evaluation(self) -> Evaluation:
        """The figures of the first branch; only where there is a split."""
        return self.evaluations[0]

    @property
    def exact_step_ms(self) -> float:
        """Time of an exact step, component after component, in which every stream is foreseen."""
        whole_ms = max(figures.sequential_ms for figures in self.evaluations)
        return self.branching.calls * whole_ms * self.exact_factor

    @property
    def first_step_ms(self) -> float:
        """The same of a trajectory's first step, whose calls come one after the other: none is foreseen."""
        return self.exact_step_ms * self.branching.calls_per_step / self.branching.calls

    @property
    def bytes_per_step(self) -> int:
        """What all branches send in a step."""
        return self.branching.calls_per_step * sum(figures.bytes_per_step for figures in self.evaluations)

    @property
    def memory_bytes(self) -> int:
        """Of the rank that holds most."""
        calls = self.branching.calls
        return max(c.memory_bytes for figures in self.evaluations for c in component_memory(figures, calls))


def find_candidates(
    branchings: Sequence[Branching],
    solvers: Solvers,
    fleet: Fleet,
    options: PlanOptions,
    progress: Progress,
    edge_errors: EdgeErrors | None = None,
) -> Iterator[Candidate]:
    """Solve every choice of branches x components x mode, most components first.

    Args:
        branchings: How branches may share a step.
        solvers: Of the problems of their calls.
        fleet: The devices, with their speeds.
        options: What restricts the choice.
        progress: Called with a sentence before each number of branches.
        edge_errors: Where the problems' staleness was measured: of several good splits in async mode the one of the
            least summed error is taken.
    """
    for branching in branchings:
        branches = branching.branches
        most = len(fleet) // branches if branching.is_even else 1
        progress(f"splitting over {branches} x {most} devices")
        fewest = 1 if branches > 1 or most == 1 else 2
        for components in (most, *range(min(most - 1, MOST_SPARED), fewest - 1, -1)):
            period = options.period if components > 1 else 1
            for mode in _modes(components, components == most, options):
                yield solve_candidate(solvers, Shape(branching, components, period, mode), fleet, edge_errors)


def _modes(components: int, with_all_devices: bool, options: PlanOptions) -> tuple[Mode, ...]:
    if options.mode is not None:
        return (options.mode,)
    if components == 1:
        return ("lookahead",)
    if options.period > 1:
        return ("async",)
    return ("lookahead", "async") if with_all_devices else ("lookahead",)


def seats_of(fleet: Fleet, branching: Branching, components: int) -> tuple[Devices, list[tuple[int, ...]]]:
    """The devices of one branch, the fastest where there are more than components.

    Returns:
        The devices as the solver takes them, and for each of them the numbers of the fleet's devices that it stands
        for, one per branch. Where branches have unequal shares there is a device for each of one stream's branches, the
        fastest first, that stands for one per stream.
    """
    devices, seats = grouped(fleet, branching.branches if branching.is_even else branching.streams)
    fastest = sorted(range(len(devices)), key=lambda d: (-devices.speeds[d], -devices.memory_bytes[d], d))
    kept = sorted(fastest[:components]) if branching.is_even else fastest[: len(branching.rows)]
    return devices.reordered(kept), [seats[d] for d in kept]


def solve_candidate(solvers: Solvers, shape: Shape, fleet: Fleet, edge_errors: EdgeErrors | None = None) -> Candidate:
    """Split one branch's problem in that shape over the fleet; the candidate says why where that is impossible.

    Args:
        solvers: Of the problems of branches' calls.
        shape: How many branches and components, and how they run.
        fleet: The devices, with their speeds.
        edge_errors: As for find_candidates.
    """
    branching = shape.branching
    unsolved = Candidate(branching, shape.components, shape.period, shape.mode)
    devices, seats = seats_of(fleet, branching, shape.components)
    each = [solvers(rows, branching.calls) for rows in branching.rows[: 1 if branching.is_even else None]]
    own = [devices] if branching.is_even else [devices.reordered([d]) for d in range(len(devices))]
    try:
        splits = [_split_that_fits(solver, d, shape, edge_errors) for solver, d in zip(each, own, strict=True)]
    except InfeasibleError as error:
        return replace(unsolved, reason=str(error))
    ranks = [0] * shape.ranks
    for number in range(shape.branches):
        for k, d in enumerate(splits[0].device_of):
            stream, share = divmod(number, len(branching.rows))
            seat = seats[d][number] if branching.is_even else seats[share][stream]
            ranks[rank_of(number, k, shape.components)] = seat
    solved = replace(unsolved, device_of=tuple(ranks), split=splits[0])
    evaluations = [split.evaluation for split in splits]
    return _scored(each[0].problem, own[0], evaluations, solved)


def rescored(problem: Problem, candidate: Candidate, fleet: Fleet) -> Candidate:
    """The same placement, its figures under the costs of another problem of the first branch's graph.

    Figures of branches with other shares change by as much as the first one's.
    """
    assert candidate.split is not None
    devices, _ = seats_of(fleet, candidate.branching, candidate.components)
    own = devices if candidate.branching.is_even else devices.reordered([0])
    split = candidate.split
    figures = evaluate(problem, split.assignment, own, candidate.mode, split.device_of)
    before = candidate.evaluation.sequential_ms
    others = [scaled(other, figures.sequential_ms / before if before else 1.0) for other in candidate.evaluations[1:]]
    return _scored(problem, own, [figures, *others], replace(candidate, split=replace(split, evaluation=figures)))


def _scored(problem: Problem, devices: Devices, evaluations: Sequence[Evaluation], candidate: Candidate) -> Candidate:
    """The candidate with the figures of its split. problem, devices: of the first branch."""
    split, rates, calls = candidate.split, candidate.periods, candidate.branching.calls
    assert split is not None
    if candidate.branching.is_even:
        evaluations = [evaluations[0]] * len(candidate.branching.rows)
    bound = max(figures.lower_bound_ms for figures in evaluations)
    if candidate.period > 1:
        bound = problem.total_ms / sum(rate * devices.speeds[d] for rate, d in zip(rates, split.device_of, strict=True))
    each = [(c, rate) for figures in evaluations for c, rate in zip(figures.components, rates, strict=True)]
    return replace(
        candidate,
        step_ms=calls * max(c.step_ms / rate for c, rate in each),
        compute_ms=calls * max(c.load_ms / rate for c, rate in each),
        lower_bound_ms=calls * bound,
        placed=dict(zip(problem.names, split.assignment, strict=True)),
        evaluations=tuple(evaluations),
    )


def _split_that_fits(solver: Solver, devices: Devices, shape: Shape, edge_errors: EdgeErrors | None) -> Split:
    """The solver's split, of which every component fits its device.

    The solver counts less of messages than there is (see message_memory); where its split then does not fit, it is
    asked again with as much less memory.

    Raises:
        InfeasibleError: There is none.
    """
    room, refused = devices, None
    for _ in range(ROOMS):
        try:
            split = _split(solver, room, shape, edge_errors)
        except InfeasibleError as error:
            raise refused or error from None
        needed = component_memory(split.evaluation, shape.branching.calls)
        excess = max(n.memory_bytes - devices.memory_bytes[d] for n, d in zip(needed, split.device_of, strict=True))
        if excess <= 0:
            return split
        most = max(each.memory_bytes for each in needed)
        refused = refused or InfeasibleError(
            f"one component needs {most / 1e9:.2f} GB, more than its device has; use more or larger devices"
        )
        if excess >= min(room.memory_bytes):
            break
        room = room.with_less_memory(excess)
    assert refused is not None
    raise refused


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
