"""plan: a PlanRequest in, a Plan and how it was found out.

    1  trace       the graph of a whole call, and of one half of its guidance batch where two branches are possible
    2  cost        of every node; the speeds of the devices relative to the one that the costs hold for
    3  solve       every choice of branches x components x mode becomes a candidate, one is chosen
    4  refine      if asked: its components are measured whole, and it is solved again
    5  prove       if asked: a bound that no split over these devices can beat
    6  the plan    with its predicted figures

Only steps 2 and 4 run anything, and only where the cost source is a device here.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from partitioner._version import __version__
from partitioner.baselines.compare import Baseline, baselines
from partitioner.costs.node_costs import GraphCosts
from partitioner.costs.relative_speed import with_speeds
from partitioner.fleet import Fleet, as_devices, limit_memory
from partitioner.graph.ir import Role, TracedGraph
from partitioner.plan.fields import PredictorName, as_label
from partitioner.plan.plan import Plan
from partitioner.plan.records import CostSource, DriverModule
from partitioner.planning.build_problem import build_problem
from partitioner.planning.candidates import Candidate, find_candidates, seats_of
from partitioner.planning.choose import advice_on, choose
from partitioner.planning.expected_quality import Advice, QualityAdvisor
from partitioner.planning.options import PlanOptions, Progress, default_warmup
from partitioner.planning.predicted import predicted_figures
from partitioner.planning.remeasure import Refinement, refine_split
from partitioner.planning.request import PlanRequest
from partitioner.search.problem import Problem

if TYPE_CHECKING:
    from partitioner.search.certificate import Certificate


@dataclass(frozen=True)
class Planning:
    """A plan and how it was found.

    Attributes:
        plan: What becomes the plan file.
        chosen: The candidate that it was made of, one of ``candidates``.
        candidates: All that was considered.
        baselines: Other splits of a whole call over as many devices, by name.
        seconds: What took how long: "trace", "cost", "solve", and "refine" and "prove" where they were asked for.
        certificate: What was proved of the step time; None if it was not asked for.
        refinement: What was measured of whole components; None if it was not asked for.
        advice: What quality to expect; None without a quality profile.
        idle: How many devices the plan does not use.
        margins_db: Of each candidate, by how many dB it came closer to the sequential output than fewer steps in the
            same time, where that was measured; else None.
    """

    plan: Plan
    chosen: Candidate
    candidates: tuple[Candidate, ...]
    baselines: Mapping[str, Baseline]
    seconds: Mapping[str, float]
    certificate: Certificate | None = None
    refinement: Refinement | None = None
    advice: Advice | None = None
    idle: int = 0
    margins_db: tuple[float | None, ...] = ()


def plan(request: PlanRequest, *, progress: Progress = lambda _: None) -> Planning:
    """Find the best way to run a denoiser on some devices.

    Args:
        request: What to plan, for which devices, by which costs.
        progress: Called with a sentence before each part of the work.

    Raises:
        TraceError: The denoiser cannot be traced.
        MeasureError: Costs are to be measured on a device that is not there.
        InfeasibleError: Nothing fits the devices, or only what is slower than one device and ``force`` is not set.

    >>> import torch
    >>> from partitioner.costs.model import CostModel
    >>> from partitioner.planning.sources import FromModule
    >>> chain = torch.nn.Sequential(*(torch.nn.Linear(512, 512) for _ in range(8))).eval()
    >>> source = FromModule(chain, {"input": torch.zeros(64, 512)}, {"input": "latent"})
    >>> planning = plan(PlanRequest(source, "cpu,cpu", CostModel("cpu")))
    >>> planning.plan.components, planning.plan.mode, planning.plan.devices
    (2, 'lookahead', ('cpu', 'cpu'))
    """
    clock = _Clock()
    options, model, advisor = request.options, request.costs, request.advisor
    with clock.measure("trace"):
        traced = request.denoiser.trace(request.traces_halves, progress)
    options = _allowed(options, traced.whole, progress)
    graphs = {1: traced.whole}
    if request.traces_halves and traced.half is not None:
        graphs[2] = traced.half
    with clock.measure("cost"):
        progress("estimating or measuring the cost of its nodes")
        costs = {branches: model(graph) for branches, graph in graphs.items()}
        fleet = with_speeds(limit_memory(request.fleet, options.memory_limit_bytes), traced.whole, model.reference)
    edge_errors = traced.edge_errors
    if edge_errors is None and advisor is not None:
        edge_errors = advisor.edge_errors(traced.whole)
    with clock.measure("solve"):
        weights = None if edge_errors is None else edge_errors.weights
        problems = {
            branches: build_problem(graph, costs[branches], weights, driver_ms=model.driver_ms)
            for branches, graph in graphs.items()
        }
        sequential_ms = problems[1].total_ms / max(as_devices(fleet).speeds)
        candidates = list(find_candidates(problems, fleet, options, progress, edge_errors))
        chosen = choose(candidates, fleet, problems[1], sequential_ms, options, advisor)
        shape = (1, len(fleet), 1, "lookahead")
        chains = (c.split for c in candidates if (c.branches, c.components, c.period, c.mode) == shape)
        compared = baselines(traced.whole, problems[1], as_devices(fleet), next(chains, None))
    problem, refinement = problems[chosen.branches], None
    if options.refine:
        with clock.measure("refine"):
            refinement = refine_split(
                graphs[chosen.branches], costs[chosen.branches], chosen, fleet, model, edge_errors, progress=progress
            )
        sequential_ms = (problems[1].driver_ms + problems[1].work_ms * refinement.scale) / max(as_devices(fleet).speeds)
        candidates[candidates.index(chosen)] = chosen = refinement.candidate
        problem = refinement.problem
    certificate = None
    if options.prove:
        with clock.measure("prove"):
            progress("proving")
            certificate = _prove(problem, chosen, fleet)
    made = Plan.from_split(
        graphs[chosen.branches],
        chosen.placed,
        components=chosen.components,
        branches=chosen.branches,
        periods=chosen.periods,
        warmup=options.warmup or default_warmup(chosen.components),
        mode=chosen.mode,
        predictor=options.predictor or default_predictor(chosen, advisor),
        devices=[fleet[d].name for d in chosen.device_of],
        predicted=predicted_figures(graphs[chosen.branches], chosen, fleet, sequential_ms, costs[1]),
        cost_source=_cost_source(costs, chosen),
        versions=_versions(),
        revision=traced.revision,
        guidance_style=request.sampling.guidance_style,
        driver_modules=[DriverModule(**asdict(module)) for module in traced.beside],
    )
    return Planning(
        made,
        chosen,
        tuple(candidates),
        compared,
        clock.seconds,
        certificate,
        refinement,
        advice=None if advisor is None else _advice(made, advisor),
        idle=len(fleet) - chosen.ranks,
        margins_db=_margins_db(candidates, request, sequential_ms),
    )


def default_predictor(chosen: Candidate, advisor: QualityAdvisor | None) -> PredictorName:
    """The predictor where the user names none.

    Look-ahead reads what belongs to its own step, so ``hold`` takes it as it is. Async mode takes what came closest to
    the sequential output where that was measured, else ``adaptive``, which cannot run away.
    """
    if chosen.mode == "lookahead":
        return "hold"
    return "adaptive" if advisor is None else advisor.async_predictor(chosen.components)


def _allowed(options: PlanOptions, graph: TracedGraph, progress: Progress) -> PlanOptions:
    """The options, in async mode unless one is asked for, where inputs are new at every step: none can be foreseen."""
    new = [item.name for item in graph.inputs if item.role is Role.STEP]
    if not new or options.mode is not None:
        return options
    progress(f"async mode only: {', '.join(new[:3])}{', …' if len(new) > 3 else ''} are new at every step")
    return replace(options, mode="async")


def _prove(problem: Problem, chosen: Candidate, fleet: Fleet) -> Certificate:
    from partitioner.search.certificate import prove

    assert chosen.split is not None
    devices, _ = seats_of(fleet, chosen.branches, chosen.components)
    return prove(problem, devices, chosen.mode, chosen.split)


def _cost_source(costs: Mapping[int, GraphCosts], chosen: Candidate) -> CostSource:
    return CostSource(
        kind="measured" if costs[1].source == "measured" else "roofline",
        device=as_label(costs[1].device),
        covered=costs[chosen.branches].covered,
    )


def _advice(made: Plan, advisor: QualityAdvisor) -> Advice:
    sampling = advisor.sampling
    speedup = made.speedup(sampling.steps, sampling.scheduler, sampling.scheduler_config)
    return advisor.advise(made.components, made.mode, made.predictor, speedup)


def _margins_db(
    candidates: Sequence[Candidate], request: PlanRequest, sequential_ms: float
) -> tuple[float | None, ...]:
    known = [advice_on(candidate, request.advisor, request.options, sequential_ms) for candidate in candidates]
    return tuple(None if advice is None else advice.margin_db for advice in known)


def _versions() -> dict[str, str]:
    found = {"diffusion_partitioner": __version__}
    for package in ("torch", "diffusers"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = as_label(importlib.metadata.version(package))
    return found


class _Clock:
    """Seconds by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def measure(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = time.perf_counter() - start
