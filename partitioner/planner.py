"""planner: which branches x components suit these devices; every choice is solved, scored and listed.

Two branches halve the guidance batch, which is exact, so quality prefers them; each branch's graph is then the one
that is traced for half of the batch. Nothing is executed here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import partitioner
from partitioner.baselines import Baseline, baselines
from partitioner.cost import GraphCosts, estimate
from partitioner.errors import InfeasibleError, UsageError
from partitioner.evaluate import Evaluation, evaluate
from partitioner.fleet import Fleet, as_devices, limit_memory, paired, parse_fleet, with_speeds
from partitioner.graph import build_problem
from partitioner.ir import TracedGraph
from partitioner.plan import CostSource, Mode, Plan, Predicted, PredictedComponent, Predictor, as_label, rank_of
from partitioner.problem import Devices, Problem
from partitioner.program import build_preamble, build_programs
from partitioner.solve import Solver, Split
from profiles.devices import DEFAULT_DEVICE

if TYPE_CHECKING:
    from torch import nn

    from partitioner.models import ModelSpec
    from partitioner.prove import Certificate

Prefer = Literal["quality", "speed", "memory"]
CostsOf = Callable[[TracedGraph], GraphCosts]
ComponentTimer = Callable[[TracedGraph, Mapping[str, int], int], list[float]]  # component_timing.time_components
Progress = Callable[[str], None]

REFINEMENTS = 3  # rounds at most; the second rarely moves a border
DEFAULT_WARMUP = 4  # what the trials of look-ahead and its predictors were made with


@dataclass(frozen=True, slots=True)
class Options:
    """What a user may ask for; None leaves the choice to the planner.

    period: every how many steps all components but the last recompute. memory_limit_bytes: of each device, on top of
    what its data sheet says. prove: look for a certificate with HiGHS. force: also a plan that is
    predicted to be slower than one device.
    """

    branches: int | None = None
    mode: Mode | None = None
    period: int = 1
    warmup: int | None = None
    predictor: Predictor | None = None
    prefer: Prefer = "quality"
    memory_limit_bytes: float | None = None
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
        if self.period > 1 and self.mode == "lookahead":
            raise UsageError("look-ahead recomputes every component in every step; use --period 1 or --mode async")
        if self.prove and self.period > 1:
            raise UsageError("a proof is for components that compute in every step; use --period 1")
        if self.prove and importlib.util.find_spec("highspy") is None:
            raise UsageError("a proof needs HiGHS; install it: pip install 'diffusion-partitioner[prove]'")


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
    def memory_bytes(self) -> int:
        """Of the rank that holds most."""
        return max(c.memory_bytes for c in self.evaluation.components)

    @property
    def periods(self) -> tuple[int, ...]:
        """Every component but the last recomputes every ``period`` steps."""
        return (self.period,) * (self.components - 1) + (1,)


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


@dataclass(frozen=True)
class Planning:
    """A plan and how it was found.

    baselines: other splits of a full call over as many devices. seconds: by "trace", "cost", "solve" and what was
    asked for besides. certificate: what was proved of the step time; refinement: what was measured; None if not asked.
    """

    plan: Plan
    chosen: Candidate
    candidates: tuple[Candidate, ...]
    baselines: Mapping[str, Baseline]
    seconds: Mapping[str, float]
    certificate: Certificate | None
    refinement: Refinement | None


def plan_model(
    spec: ModelSpec,
    fleet: Fleet,
    costs_of: CostsOf,
    options: Options = Options(),
    *,
    reference: str | None = None,
    timer: ComponentTimer | None = None,
    progress: Progress = lambda _: None,
) -> Planning:
    """Trace a model without its weights and plan it; see plan_graphs."""
    from partitioner.models import trace_model

    _check_branches(options, len(fleet), spec.name, spec.halves == 2)
    clock = _Clock()
    with clock.measure("trace"):
        progress(f"tracing {spec.name}")
        whole = trace_model(spec)
        half = None
        if spec.halves == 2 and options.branches != 1 and len(fleet) > 1:
            progress("tracing one half of its guidance batch")
            half = trace_model(spec, branch=True)
    return plan_graphs(
        whole,
        half,
        fleet,
        costs_of,
        options,
        revision=spec.revision,
        reference=reference,
        timer=timer,
        progress=progress,
        clock=clock,
    )


def compile(
    module: nn.Module,
    example_inputs: Mapping[str, Any],
    roles: Mapping[str, Any],
    devices: int | str | Fleet = 2,
    *,
    branch_inputs: Mapping[str, Any] | None = None,
    model: str = "custom",
    device: str = DEFAULT_DEVICE,
    costs_of: CostsOf | None = None,
    options: Options = Options(),
) -> Plan:
    """Plan ``module(**example_inputs)`` for some devices; any nn.Module that torch.export traces.

    roles: of each tensor argument, "latent", "timestep" or "prompt"; see ``trace``. devices: how many, or as for
    ``partition-model --devices``. branch_inputs: the arguments of one half of the guidance batch, where the batch
    holds both; two branches are considered only then. device: what roofline costs are for; costs_of: other costs.
    Raises TraceError, UsageError, InfeasibleError.
    """
    from partitioner.trace import trace

    fleet = devices if isinstance(devices, tuple) else parse_fleet(str(devices), device)
    whole = trace(module, example_inputs, roles, model=model)
    half = None if branch_inputs is None else trace(module, branch_inputs, roles, model=model)
    return plan_graphs(whole, half, fleet, costs_of or (lambda graph: estimate(graph, device)), options).plan


def plan_graphs(
    whole: TracedGraph,
    half: TracedGraph | None,
    fleet: Fleet,
    costs_of: CostsOf,
    options: Options = Options(),
    *,
    revision: str | None = None,
    reference: str | None = None,
    timer: ComponentTimer | None = None,
    progress: Progress = lambda _: None,
    clock: _Clock | None = None,
) -> Planning:
    """Solve every choice of branches x components, take the best under ``options.prefer``.

    whole: the graph of a full call; half: that of one half of the guidance batch, None where it holds no two.
    reference: name of the device that the costs hold for, the first of the fleet by default. timer: measures whole
    components on it; the costs are then refined with it.
    Raises InfeasibleError where nothing fits, or only what is slower than one device and ``force`` is not set.
    """
    _check_branches(options, len(fleet), whole.model, half is not None)
    if len(fleet) < 2:
        half = None
    clock = clock or _Clock()
    with clock.measure("cost"):
        progress("estimating or measuring the cost of its nodes")
        costs = {1: costs_of(whole)}
        if half is not None:
            costs[2] = costs_of(half)
        fleet = with_speeds(limit_memory(fleet, options.memory_limit_bytes), whole, reference or fleet[0].name)
    graphs = {1: whole} if half is None else {1: whole, 2: half}
    with clock.measure("solve"):
        problems = {branches: build_problem(graph, costs[branches]) for branches, graph in graphs.items()}
        sequential_ms = problems[1].total_ms / max(as_devices(fleet).speeds)
        candidates = list(_candidates(problems, fleet, options, progress))
        chosen = _choose(candidates, len(fleet), options, sequential_ms, problems[1], fleet)
        compared = baselines(whole, problems[1], as_devices(fleet))
    refinement = None
    if timer is not None:
        with clock.measure("refine"):
            refinement = _refine(
                graphs[chosen.branches], costs[chosen.branches], chosen, fleet, options, timer, progress
            )
        sequential_ms *= refinement.scale
        candidates[candidates.index(chosen)] = chosen = refinement.candidate
    certificate = None
    if options.prove and chosen.split is not None:
        from partitioner.prove import prove

        with clock.measure("prove"):
            progress("proving")
            devices, _ = _seats(fleet, chosen.branches)
            problem = problems[chosen.branches] if refinement is None else refinement.problem
            certificate = prove(problem, devices, chosen.mode, chosen.split)
    plan = Plan.from_split(
        graphs[chosen.branches],
        chosen.placed,
        components=chosen.components,
        branches=chosen.branches,
        periods=chosen.periods,
        warmup=options.warmup or default_warmup(chosen.components),
        mode=chosen.mode,
        predictor=options.predictor or default_predictor(chosen.mode),
        devices=[fleet[d].name for d in chosen.device_of],
        predicted=_predicted(graphs[chosen.branches], chosen, fleet, sequential_ms, costs[1]),
        cost_source=CostSource(
            kind="measured" if costs[1].source == "measured" else "roofline",
            device=as_label(costs[1].device),
            covered=costs[chosen.branches].covered,
        ),
        versions=_versions(),
        revision=revision,
    )
    return Planning(plan, chosen, tuple(candidates), compared, clock.seconds, certificate, refinement)


def _check_branches(options: Options, device_count: int, model: str, halves: bool) -> None:
    if options.branches == 2 and not halves:
        raise UsageError(f"{model} has one branch: its calls hold no guidance batch to split; use --branches 1")
    if options.branches == 2 and device_count < 2:
        raise UsageError("two branches need two devices at least; use --branches 1")


def default_warmup(components: int) -> int:
    """Exact steps at the start: none is needed but one where nothing lags; a chain's pipe is filled meanwhile."""
    return 1 if components == 1 else max(DEFAULT_WARMUP, components)


def default_predictor(mode: Mode) -> Predictor:
    """Look-ahead reads what belongs to its step, as it is; in async mode `adaptive` cannot run away."""
    return "hold" if mode == "lookahead" else "adaptive"


def _candidates(
    problems: Mapping[int, Problem], fleet: Fleet, options: Options, progress: Progress
) -> Iterator[Candidate]:
    for branches, problem in problems.items():
        if options.branches not in (None, branches):
            continue
        progress(f"splitting over {branches} x {len(fleet) // branches} devices")
        yield _candidate(problem, branches, fleet, options)


def _seats(fleet: Fleet, branches: int) -> tuple[Devices, list[tuple[int, ...]]]:
    """The devices of one branch, and of each the fleet's devices that it stands for, one per branch."""
    return paired(fleet) if branches == 2 else (as_devices(fleet), [(d,) for d in range(len(fleet))])


def _candidate(problem: Problem, branches: int, fleet: Fleet, options: Options) -> Candidate:
    devices, seats = _seats(fleet, branches)
    components = len(devices)
    period = options.period if components > 1 else 1
    mode: Mode = options.mode or ("lookahead" if period == 1 else "async")
    try:
        split = _split(Solver(problem), devices, mode, period)
    except InfeasibleError as error:
        return Candidate(branches, components, period, mode, reason=str(error))
    evaluation = split.evaluation
    if not evaluation.feasible:
        needed = max(c.memory_bytes for c in evaluation.components)
        reason = f"one component needs {needed / 1e9:.2f} GB, more than its device has; use more or larger devices"
        return Candidate(branches, components, period, mode, reason=reason)
    rates = [period] * (components - 1) + [1]
    bound = evaluation.lower_bound_ms
    if period > 1:
        bound = problem.total_ms / sum(rate * devices.speeds[d] for rate, d in zip(rates, split.device_of, strict=True))
    ranks = [0] * (branches * components)
    for k, d in enumerate(split.device_of):
        for branch in range(branches):
            ranks[rank_of(branch, k, components)] = seats[d][branch]
    return Candidate(
        branches=branches,
        components=components,
        period=period,
        mode=mode,
        step_ms=max(c.step_ms / rate for c, rate in zip(evaluation.components, rates, strict=True)),
        compute_ms=max(c.load_ms / rate for c, rate in zip(evaluation.components, rates, strict=True)),
        lower_bound_ms=bound,
        placed=dict(zip(problem.names, split.assignment, strict=True)),
        device_of=tuple(ranks),
        split=split,
    )


def _split(solver: Solver, devices: Devices, mode: Mode, period: int) -> Split:
    """The solver's split. With a period P all components but the last have P steps for their work: split over
    P*(N-1)+1 equal devices, of which P in a row become one."""
    if period == 1:
        return solver.solve(devices, mode)
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


def _choose(
    candidates: Sequence[Candidate],
    device_count: int,
    options: Options,
    sequential_ms: float,
    whole: Problem,
    fleet: Fleet,
) -> Candidate:
    """The best candidate; quality: as few components in a chain as the devices allow, for branches are exact."""
    feasible = [candidate for candidate in candidates if candidate.reason is None]
    if not feasible:
        raise InfeasibleError("; ".join(f"{c.branches} x {c.components}: {c.reason}" for c in candidates))
    keys: dict[Prefer, Callable[[Candidate], tuple[float, ...]]] = {
        "quality": lambda c: (device_count - c.ranks, c.components, c.step_ms),
        "speed": lambda c: (c.step_ms, c.components),
        "memory": lambda c: (c.memory_bytes, c.step_ms),
    }
    faster = [c for c in feasible if c.step_ms < sequential_ms]
    chosen = min(faster or feasible, key=keys[options.prefer])
    fits_one = any(whole.item_bytes.sum() + whole.activation_bytes.max() <= device.memory_bytes for device in fleet)
    if not faster and device_count > 1 and fits_one and not options.force:
        raise InfeasibleError(
            f"the best plan for {device_count} devices is predicted to take {chosen.step_ms:.4g} ms per step and one "
            f"device {sequential_ms:.4g} ms; use one device, faster links, or --force"
        )
    return chosen


def _refine(
    graph: TracedGraph,
    costs: GraphCosts,
    chosen: Candidate,
    fleet: Fleet,
    options: Options,
    timer: ComponentTimer,
    progress: Progress,
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
        problem = build_problem(graph, costs)
        placed, chosen = chosen.placed, _candidate(problem, chosen.branches, fleet, options)
        if chosen.reason is not None:
            raise InfeasibleError(chosen.reason)
        if chosen.placed == placed or len(rounds) == REFINEMENTS:
            return Refinement(tuple(rounds), chosen, problem, sum(measured) / before if before > 0 else 1.0)


def _latent_ms(graph: TracedGraph, costs: GraphCosts, placed: Mapping[str, int], components: int) -> list[float]:
    """Time of each component's latent nodes on the device of the costs."""
    found = [0.0] * components
    for node in graph.latent_nodes:
        found[placed[node.name]] += costs.nodes[node.name].ms
    return found


def _predicted(
    graph: TracedGraph, chosen: Candidate, fleet: Fleet, sequential_ms: float, whole_costs: GraphCosts
) -> Predicted:
    programs = build_programs(graph, chosen.placed, chosen.components)
    preamble = build_preamble(graph, chosen.placed, chosen.components)
    slowest_of_pair = [
        min(fleet[chosen.device_of[rank_of(b, k, chosen.components)]].speed or 1.0 for b in range(chosen.branches))
        for k in range(chosen.components)
    ]
    components = []
    for branch in range(chosen.branches):
        for k, (figures, program) in enumerate(zip(chosen.evaluation.components, programs, strict=True)):
            driver = rank_of(branch, k, chosen.components) == 0
            held = {*program.parameters, *(preamble.parameters if driver else ())}
            metas = [graph.parameter_by_name[name].meta for name in held]
            speed = fleet[chosen.device_of[rank_of(branch, k, chosen.components)]].speed or 1.0
            components.append(
                PredictedComponent(
                    compute_ms=_rounded(figures.load_ms * slowest_of_pair[k] / speed),
                    macs=figures.macs,
                    parameters=sum(meta.numel for meta in metas),
                    parameter_bytes=sum(meta.size_bytes for meta in metas),
                    memory_bytes=figures.memory_bytes,
                    receive_bytes=figures.receive_bytes,
                    send_bytes=figures.send_bytes,
                )
            )
    return Predicted(
        sequential_ms=_rounded(sequential_ms),
        step_ms=_rounded(chosen.step_ms),
        lower_bound_ms=_rounded(chosen.lower_bound_ms),
        gap=_rounded(chosen.compute_ms / chosen.lower_bound_ms - 1 if chosen.lower_bound_ms > 0 else 0.0),
        speedup_step=_rounded(sequential_ms / chosen.step_ms if chosen.step_ms > 0 else 1.0),
        exact_step_ms=_rounded(chosen.evaluation.sequential_ms),
        bytes_per_step=chosen.branches * chosen.evaluation.bytes_per_step,
        staleness=_rounded(chosen.evaluation.staleness),
        macs=sum(cost.macs for cost in whole_costs.nodes.values()),
        components=tuple(components),
    )


def _rounded(value: float) -> float:
    """Six decimals: a plan's bytes do not depend on the last bits of a sum."""
    return round(float(value), 6)


def _versions() -> dict[str, str]:
    found = {"diffusion_partitioner": partitioner.__version__}
    for package in ("torch", "diffusers"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = as_label(importlib.metadata.version(package))
    return found


class _Clock:
    """Seconds by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {"trace": 0.0, "cost": 0.0, "solve": 0.0}

    @contextlib.contextmanager
    def measure(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
