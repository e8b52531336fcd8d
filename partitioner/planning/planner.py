"""planner: a model or traced graphs, devices and options in, a Plan out.

Of two branches each is the graph that is traced for one half of the guidance batch. Nothing is executed here.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import partitioner
from partitioner.baselines.compare import Baseline, baselines
from partitioner.costs.node_costs import GraphCosts
from partitioner.costs.relative_speed import with_speeds
from partitioner.costs.roofline import estimate
from partitioner.fleet import Fleet, as_devices, limit_memory, parse_fleet
from partitioner.graph.ir import TracedGraph
from partitioner.plan.fields import PredictorName, as_label
from partitioner.plan.plan import Plan
from partitioner.plan.records import CostSource
from partitioner.planning.build_problem import build_problem
from partitioner.planning.candidates import Candidate, check_branches, find_candidates, seats_of
from partitioner.planning.choose import advice_on, choose
from partitioner.planning.expected_quality import Advice, QualityAdvisor
from partitioner.planning.options import DEFAULTS, Options, Progress, default_warmup
from partitioner.planning.predicted import predicted_figures
from partitioner.planning.remeasure import ComponentTimer, Refinement, refine_split
from partitioner.process import beside
from partitioner.staleness.edge_errors import EdgeErrors
from profiles.device_sheets import DEFAULT_DEVICE

if TYPE_CHECKING:
    from torch import nn

    from partitioner.models.spec import ModelSpec
    from partitioner.search.certificate import Certificate


CostsOf = Callable[[TracedGraph], GraphCosts]


@dataclass(frozen=True)
class Planning:
    """A plan and how it was found.

    baselines: other splits of a full call over as many devices. seconds: by "trace", "cost", "solve" and what was
    asked for besides. certificate: what was proved of the step time; refinement: what was measured; None if not asked.
    advice: what quality to expect, None without a profile. idle: how many devices the plan does not use. margins_db: of
    each candidate, by how much it was seen to come closer to the sequential output than fewer steps; None: not known.
    """

    plan: Plan
    chosen: Candidate
    candidates: tuple[Candidate, ...]
    baselines: Mapping[str, Baseline]
    seconds: Mapping[str, float]
    certificate: Certificate | None
    refinement: Refinement | None
    advice: Advice | None = None
    idle: int = 0
    margins_db: tuple[float | None, ...] = ()


def plan_model(
    spec: ModelSpec,
    fleet: Fleet,
    costs_of: CostsOf,
    options: Options = DEFAULTS,
    *,
    reference: str | None = None,
    timer: ComponentTimer | None = None,
    advisor: QualityAdvisor | None = None,
    progress: Progress = lambda _: None,
    fork: bool = False,
) -> Planning:
    """Trace a model without its weights and plan it; see plan_graphs.

    fork: trace the whole call and one half of its batch at the same time, the latter in a forked process; only for
    callers in whose process torch has computed nothing yet.
    """
    from partitioner.models.spec import trace_model

    check_branches(options, len(fleet), spec.name, spec.halves == 2)
    clock = _Clock()
    with clock.measure("trace"), _without_collector():
        progress(f"tracing {spec.name}")
        half_of: Callable[[], TracedGraph] | None = None
        if spec.halves == 2 and options.branches != 1 and len(fleet) > 1:
            progress("tracing one half of its guidance batch")
            half_of = partial(trace_model, spec, branch=True)
            if fork:
                spec.load()
                half_of = beside(half_of)
        whole = trace_model(spec)
        half = half_of() if half_of is not None else None
    return plan_graphs(
        whole,
        half,
        fleet,
        costs_of,
        options,
        revision=spec.revision,
        reference=reference,
        timer=timer,
        advisor=advisor,
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
    trajectory: Sequence[Mapping[str, Any]] | None = None,
    options: Options = DEFAULTS,
) -> Plan:
    """Plan ``module(**example_inputs)`` for some devices; any nn.Module that torch.export traces.

    roles: of each tensor argument, "latent", "timestep" or "prompt"; see ``trace``. devices: how many, or as for
    ``partition-model --devices``. branch_inputs: the arguments of one half of the guidance batch, where the batch
    holds both; two branches are considered only then. device: what roofline costs are for; costs_of: other costs.
    trajectory: the arguments of consecutive calls of a real trajectory, as example_inputs are: staleness is measured on
    them with the module's weights (32 backward passes a call) instead of estimated from the graph.
    Raises TraceError, UsageError, InfeasibleError.
    """
    from partitioner.graph.export import trace

    fleet = devices if isinstance(devices, tuple) else parse_fleet(str(devices), device)
    whole = trace(module, example_inputs, roles, model=model)
    half = None if branch_inputs is None else trace(module, branch_inputs, roles, model=model)
    drift = None
    if trajectory is not None:
        from partitioner.staleness.measured import measure_module

        drift = measure_module(module, whole, trajectory)
    costs_of = costs_of or (lambda graph: estimate(graph, device))
    return plan_graphs(whole, half, fleet, costs_of, options, drift=drift).plan


def plan_graphs(
    whole: TracedGraph,
    half: TracedGraph | None,
    fleet: Fleet,
    costs_of: CostsOf,
    options: Options = DEFAULTS,
    *,
    drift: EdgeErrors | None = None,
    revision: str | None = None,
    reference: str | None = None,
    timer: ComponentTimer | None = None,
    advisor: QualityAdvisor | None = None,
    progress: Progress = lambda _: None,
    clock: _Clock | None = None,
) -> Planning:
    """Solve every choice of branches x components x mode, take the best under ``options.prefer``.

    whole: the graph of a full call; half: that of one half of the guidance batch, None where it holds no two.
    drift: measured staleness of the whole graph's edges, which are the half's too; a proxy without it.
    reference: name of the device that the costs hold for, the first of the fleet by default. timer: measures whole
    components on it; the costs are then refined with it. advisor: knows which mode and predictor came closest to the
    sequential output, and maybe the drift; without one it is look-ahead, and `adaptive` in async mode.
    Raises InfeasibleError where nothing fits, or only what is slower than one device and ``force`` is not set.
    """
    check_branches(options, len(fleet), whole.model, half is not None)
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
    if drift is None and advisor is not None:
        drift = advisor.drift(whole)
    weights = None if drift is None else drift.weights
    with clock.measure("solve"):
        problems = {
            branches: build_problem(graph, costs[branches], weights, driver_ms=options.driver_ms)
            for branches, graph in graphs.items()
        }
        sequential_ms = problems[1].total_ms / max(as_devices(fleet).speeds)
        candidates = list(find_candidates(problems, fleet, options, progress, drift))
        chosen = choose(candidates, len(fleet), options, sequential_ms, problems[1], fleet, advisor)
        compared = baselines(whole, problems[1], as_devices(fleet))
    refinement = None
    if timer is not None:
        with clock.measure("refine"):
            refinement = refine_split(
                graphs[chosen.branches], costs[chosen.branches], chosen, fleet, options, timer, progress, drift
            )
        sequential_ms = options.driver_ms + (sequential_ms - options.driver_ms) * refinement.scale
        candidates[candidates.index(chosen)] = chosen = refinement.candidate
    certificate = None
    if options.prove and chosen.split is not None:
        from partitioner.search.certificate import prove

        with clock.measure("prove"):
            progress("proving")
            devices, _ = seats_of(fleet, chosen.branches, chosen.components)
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
        predictor=options.predictor or default_predictor(chosen, advisor),
        devices=[fleet[d].name for d in chosen.device_of],
        predicted=predicted_figures(graphs[chosen.branches], chosen, fleet, sequential_ms, costs[1], options.driver_ms),
        cost_source=CostSource(
            kind="measured" if costs[1].source == "measured" else "roofline",
            device=as_label(costs[1].device),
            covered=costs[chosen.branches].covered,
        ),
        versions=_versions(),
        revision=revision,
    )
    advice = None
    if advisor is not None:
        speedup = plan.speedup(advisor.sampling.steps, advisor.sampling.scheduler)
        advice = advisor.advise(plan.components, plan.mode, plan.predictor, speedup)
    known = [advice_on(candidate, advisor, options, sequential_ms) for candidate in candidates]
    return Planning(
        plan,
        chosen,
        tuple(candidates),
        compared,
        clock.seconds,
        certificate,
        refinement,
        advice,
        len(fleet) - chosen.ranks,
        tuple(None if one is None else one.margin_db for one in known),
    )


def default_predictor(chosen: Candidate, advisor: QualityAdvisor | None) -> PredictorName:
    """Look-ahead reads what belongs to its step, as it is; in async mode `adaptive` cannot run away."""
    if chosen.mode == "lookahead":
        return "hold"
    return "adaptive" if advisor is None else advisor.hop_predictor(chosen.components)


def _versions() -> dict[str, str]:
    found = {"diffusion_partitioner": partitioner.__version__}
    for package in ("torch", "diffusers"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = as_label(importlib.metadata.version(package))
    return found


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Tracing makes millions of objects that live; looking through them for garbage takes a tenth of its time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


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
