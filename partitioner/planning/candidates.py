"""candidates: every way to use the devices, solved and scored, and which of them is chosen.

Two branches halve the guidance batch, which is exact, so quality prefers them; then look-ahead, in which nothing that
is read is stale; then async. With all the devices both modes are solved, with fewer of them only look-ahead.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from partitioner.errors import InfeasibleError, UsageError
from partitioner.fleet import Fleet, as_devices, paired
from partitioner.plan.ranks import rank_of
from partitioner.planning.options import Options, Progress
from partitioner.search.devices import Devices
from partitioner.search.evaluate import Evaluation, evaluate
from partitioner.search.mode import Mode
from partitioner.search.problem import Problem
from partitioner.search.solver import EPSILON, Solver, Split
from partitioner.staleness.edge_errors import EdgeErrors, least_error

RESCORED = (EPSILON / 4, EPSILON / 2, EPSILON)  # the best split for each is rescored by its measured error
MOST_SPARED = 8  # components in a chain that leaves devices idle: longer ones are only solved with all devices


@dataclass(frozen=True)
class Candidate:
    """One way to use the devices. reason: why it is no split, else None; then the figures below hold.

    step_ms: amortised over the period. device_of: number of the fleet's device of each rank.
    """

    branches: int
    components: int
    period: int
    mode: Mode
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
    def ranks(self) -> int:
        return self.branches * self.components

    @property
    def is_stale(self) -> bool:
        """Whether components read what is a step old."""
        return self.mode == "async" and self.components > 1

    @property
    def bytes_per_step(self) -> int:
        """Of all branches."""
        return self.branches * self.evaluation.bytes_per_step

    @property
    def memory_bytes(self) -> int:
        """Of the rank that holds most."""
        return max(c.memory_bytes for c in self.evaluation.components)

    @property
    def periods(self) -> tuple[int, ...]:
        """Every component but the last recomputes every ``period`` steps."""
        return (self.period,) * (self.components - 1) + (1,)


def check_branches(options: Options, device_count: int, model: str, halves: bool) -> None:
    if options.branches == 2 and not halves:
        raise UsageError(f"{model} has one branch: its calls hold no guidance batch to split; use --branches 1")
    if options.branches == 2 and device_count < 2:
        raise UsageError("two branches need two devices at least; use --branches 1")


def find_candidates(
    problems: Mapping[int, Problem],
    fleet: Fleet,
    options: Options,
    progress: Progress,
    drift: EdgeErrors | None = None,
) -> Iterator[Candidate]:
    """Every branches x components x mode, most components first. problems: of one branch, by the number of branches.

    drift: where the problems' staleness was measured; of the best splits in async the one of the least error is taken.
    """
    for branches, problem in problems.items():
        if options.branches not in (None, branches):
            continue
        most = len(fleet) // branches
        progress(f"splitting over {branches} x {most} devices")
        solver = Solver(problem)
        fewest = 1 if branches == 2 or most == 1 else 2
        for components in (most, *range(min(most - 1, MOST_SPARED), fewest - 1, -1)):
            for mode in _modes(components, components == most, options):
                yield solve_candidate(solver, branches, components, mode, fleet, options, drift)


def _modes(components: int, with_all_devices: bool, options: Options) -> tuple[Mode, ...]:
    if options.mode is not None:
        return (options.mode,)
    if components == 1:
        return ("lookahead",)
    if options.period > 1:
        return ("async",)
    return ("lookahead", "async") if with_all_devices else ("lookahead",)


def seats_of(fleet: Fleet, branches: int, components: int) -> tuple[Devices, list[tuple[int, ...]]]:
    """The devices of one branch, and of each the fleet's devices that it stands for, one per branch.

    The fastest, where there are more than components.
    """
    devices, seats = paired(fleet) if branches == 2 else (as_devices(fleet), [(d,) for d in range(len(fleet))])
    fastest = sorted(range(len(devices)), key=lambda d: (-devices.speeds[d], -devices.memory_bytes[d], d))
    kept = sorted(fastest[:components])
    return devices.reordered(kept), [seats[d] for d in kept]


def solve_candidate(
    solver: Solver,
    branches: int,
    components: int,
    mode: Mode,
    fleet: Fleet,
    options: Options,
    drift: EdgeErrors | None = None,
) -> Candidate:
    problem = solver.problem
    devices, seats = seats_of(fleet, branches, components)
    period = options.period if components > 1 else 1
    try:
        split = _split(solver, devices, mode, period, drift)
    except InfeasibleError as error:
        return Candidate(branches, components, period, mode, reason=str(error))
    evaluation = split.evaluation
    if not evaluation.feasible:
        needed = max(c.memory_bytes for c in evaluation.components)
        reason = f"one component needs {needed / 1e9:.2f} GB, more than its device has; use more or larger devices"
        return Candidate(branches, components, period, mode, reason=reason)
    ranks = [0] * (branches * components)
    for k, d in enumerate(split.device_of):
        for branch in range(branches):
            ranks[rank_of(branch, k, components)] = seats[d][branch]
    return _scored(problem, devices, split, Candidate(branches, components, period, mode, device_of=tuple(ranks)))


def rescored(problem: Problem, candidate: Candidate, fleet: Fleet) -> Candidate:
    """The same placement, its figures under the costs of another problem of the same graph."""
    assert candidate.split is not None
    devices, _ = seats_of(fleet, candidate.branches, candidate.components)
    split = candidate.split
    figures = evaluate(problem, split.assignment, devices, candidate.mode, split.device_of)
    return _scored(problem, devices, replace(split, evaluation=figures), candidate)


def _scored(problem: Problem, devices: Devices, split: Split, shape: Candidate) -> Candidate:
    """The candidate of that shape with a split and its figures."""
    rates = shape.periods
    evaluation = split.evaluation
    bound = evaluation.lower_bound_ms
    if shape.period > 1:
        bound = problem.total_ms / sum(rate * devices.speeds[d] for rate, d in zip(rates, split.device_of, strict=True))
    return replace(
        shape,
        step_ms=max(c.step_ms / rate for c, rate in zip(evaluation.components, rates, strict=True)),
        compute_ms=max(c.load_ms / rate for c, rate in zip(evaluation.components, rates, strict=True)),
        lower_bound_ms=bound,
        placed=dict(zip(problem.names, split.assignment, strict=True)),
        split=split,
    )


def _split(solver: Solver, devices: Devices, mode: Mode, period: int, drift: EdgeErrors | None) -> Split:
    """The solver's split. With a period P all components but the last have P steps for their work: split over
    P*(N-1)+1 equal devices, of which P in a row become one."""
    if period == 1:
        if drift is None or mode == "lookahead":
            return solver.solve(devices, mode)
        # by staleness alone, and by bytes as well: a few good splits, that differ
        found = [solver.sweep(devices, mode, epsilons=RESCORED, byte_weight=weight) for weight in (0.0, None)]
        return least_error(drift, solver.problem, [split for splits in found for split in splits])
    if len(devices.kinds) > 1:
        raise InfeasibleError("a period above 1 needs equal devices; use --period 1")
    last = len(devices) - 1
    virtual = Devices.equal(
        period * last + 1,
        speed=devices.speeds[0],
        link_gb_per_s=devices.link_gb_per_s[0],
        latency_ms=devices.latency_ms[0],
    )
    split = solver.solve(virtual, mode)
    assignment = tuple(k // period for k in split.assignment)
    return Split(assignment, tuple(range(last + 1)), split.form, evaluate(solver.problem, assignment, devices, mode))
