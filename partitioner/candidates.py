"""candidates: every way to use the devices, solved and scored, and which of them is chosen.

Two branches halve the guidance batch, which is exact, so quality prefers them; then look-ahead, in which nothing that
is read is stale; then async. With all the devices both modes are solved, with fewer of them only look-ahead.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from partitioner.advice import Advice, Adviser
from partitioner.edge_drift import EdgeDrift, least_error
from partitioner.errors import InfeasibleError, UsageError
from partitioner.evaluate import Evaluation, evaluate
from partitioner.fleet import Fleet, as_devices, paired
from partitioner.plan import Mode, Predictor, rank_of, trajectory_speedup
from partitioner.problem import Devices, Problem
from partitioner.solve import EPSILON, Solver, Split

Prefer = Literal["quality", "speed", "memory"]
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Options:
    """What a user may ask for; None leaves the choice to the planner.

    period: every how many steps all components but the last recompute. memory_limit_bytes: of each device, on top of
    what its data sheet says. driver_ms: the pipeline's own work per step (guidance, the scheduler), done by rank 0.
    prove: look for a certificate with HiGHS. force: also a plan that is
    predicted to be slower than one device.
    """

    branches: int | None = None
    mode: Mode | None = None
    period: int = 1
    warmup: int | None = None
    predictor: Predictor | None = None
    prefer: Prefer = "quality"
    memory_limit_bytes: float | None = None
    driver_ms: float = 0.0
    prove: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        if self.branches not in (None, 1, 2):
            raise UsageError(f"branches is 1, 2 or left out; got {self.branches}")
        if not 1 <= self.period <= 64:
            raise UsageError(f"period is {self.period}; expected 1 to 64")
        if self.warmup is not None and not 1 <= self.warmup <= 10_000:
            raise UsageError(f"warm-up is {self.warmup} steps; expected 1 to 10000")
        if self.memory_limit_bytes is not None and not self.memory_limit_bytes > 0:
            raise UsageError(f"the memory limit is {self.memory_limit_bytes / 1e9:g} GB; expected more than 0")
        if not 0 <= self.driver_ms < math.inf:
            raise UsageError(f"the driver's work is {self.driver_ms} ms per step; expected 0 or more")
        if self.period > 1 and self.mode == "lookahead":
            raise UsageError("look-ahead recomputes every component in every step; use --period 1 or --mode async")
        if self.prove and self.period > 1:
            raise UsageError("a proof is for components that compute in every step; use --period 1")
        if self.prove and importlib.util.find_spec("highspy") is None:
            raise UsageError("a proof needs HiGHS; install it: pip install 'diffusion-partitioner[prove]'")


DEFAULTS = Options()
RESCORED = (EPSILON / 4, EPSILON / 2, EPSILON)  # the best split for each is rescored by its measured error
MOST_SPARED = 8  # components in a chain that leaves devices idle: longer ones are only solved with all devices
DEFAULT_WARMUP = 4  # what quality was measured with
IDLE_SHARE = 0.25  # of the devices, that quality may leave idle for exact branches: one of five, not one of three


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
    drift: EdgeDrift | None = None,
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
    drift: EdgeDrift | None = None,
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


def _split(solver: Solver, devices: Devices, mode: Mode, period: int, drift: EdgeDrift | None) -> Split:
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


def default_warmup(components: int) -> int:
    """Exact steps at the start: none is needed but one where nothing lags; a chain's pipe is filled meanwhile."""
    return 1 if components == 1 else max(DEFAULT_WARMUP, components)


def choose(
    candidates: Sequence[Candidate],
    device_count: int,
    options: Options,
    sequential_ms: float,
    whole: Problem,
    fleet: Fleet,
    adviser: Adviser | None = None,
) -> Candidate:
    """The best candidate under ``options.prefer``; of equal speed or memory, the one of better quality.

    quality: seen to be better than fewer steps on one device in the same time, and by MARGIN_DB (or not seen to be no
    better), few devices idle, nothing stale, exact branches, no device idle, in this order; where the adviser knows
    async mode to be better than look-ahead over as many components, the latter counts as stale instead.
    Raises InfeasibleError if no split over all the devices exists (or all but an odd one), or only slower ones.
    """
    with_all = [c for c in candidates if c.components == device_count // c.branches]
    if all(c.reason for c in with_all):
        reasons = dict.fromkeys(f"{c.branches} x {c.components}: {c.reason}" for c in with_all)
        raise InfeasibleError("; ".join(reasons))
    feasible = [candidate for candidate in candidates if candidate.reason is None]

    def quality(c: Candidate) -> tuple[float, ...]:
        idle = device_count - c.ranks
        async_is_better = adviser is not None and adviser.prefers_async(c.components)
        worse = c.is_stale != async_is_better
        doubt = _doubt(c, adviser, options, sequential_ms)
        return doubt, idle > IDLE_SHARE * device_count, worse, -c.branches, idle, c.step_ms

    keys: dict[Prefer, Callable[[Candidate], tuple[float, ...]]] = {
        "quality": quality,
        "speed": lambda c: (c.step_ms, *quality(c)),
        "memory": lambda c: (c.memory_bytes, *quality(c)),
    }
    faster = [c for c in feasible if c.step_ms < sequential_ms]
    chosen = min(feasible if options.force else faster or feasible, key=keys[options.prefer])
    fits_one = any(whole.item_bytes.sum() + whole.activation_bytes.max() <= device.memory_bytes for device in fleet)
    if not faster and device_count > 1 and fits_one and not options.force:
        raise InfeasibleError(
            f"the best plan for {device_count} devices is predicted to take {chosen.step_ms:.4g} ms per step and one "
            f"device {sequential_ms:.4g} ms; use one device, faster links, or --force"
        )
    return chosen


def _doubt(c: Candidate, adviser: Adviser | None, options: Options, sequential_ms: float) -> int:
    """Advice.doubt; async mode of which nothing was measured is doubted as look-ahead over as many components is."""
    advice = advice_on(c, adviser, options, sequential_ms)
    if advice is not None and advice.margin_db is None and c.is_stale:
        advice = advice_on(replace(c, mode="lookahead"), adviser, options, sequential_ms)
    return 0 if advice is None else advice.doubt


def advice_on(c: Candidate, adviser: Adviser | None, options: Options, sequential_ms: float) -> Advice | None:
    """What was measured of such a plan with the sampler that will be used; None where no sampler is known, the plan is
    exact, or there is no split."""
    if adviser is None or adviser.occasion.scheduler is None or c.components == 1 or c.reason is not None:
        return None
    warmup = options.warmup or default_warmup(c.components)
    speedup = trajectory_speedup(
        adviser.occasion.steps,
        adviser.occasion.scheduler,
        c.mode,
        warmup,
        sequential_ms=sequential_ms,
        exact_step_ms=c.evaluation.sequential_ms,
        step_ms=c.step_ms,
    )
    predictor = options.predictor or adviser.hop_predictor(c.components)
    return adviser.advise(c.components, c.mode, predictor, speedup)
