"""plan: a PlanRequest in, a Plan and how it was found out.

    1  trace       the graph of a whole call, and of calls with fewer rows where branches can share them
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
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from partitioner._version import __version__
from partitioner.baselines.compare import Baseline, baselines
from partitioner.costs.node_costs import GraphCosts
from partitioner.costs.relative_speed import with_speeds
from partitioner.fleet import Fleet, as_devices, limit_memory
from partitioner.graph.ir import TracedGraph
from partitioner.plan.fields import as_label
from partitioner.plan.plan import Plan
from partitioner.plan.predictor import PredictorName
from partitioner.plan.records import CostSource, DriverModule
from partitioner.planning.advice import Advice
from partitioner.planning.branching import uneven_branchings
from partitioner.planning.build_problem import build_problem
from partitioner.planning.candidates import Candidate, find_candidates, seats_of
from partitioner.planning.choose import choose
from partitioner.planning.expected_quality import QualityAdvisor
from partitioner.planning.judge import Judge, PassedOver
from partitioner.planning.microbatches import in_microbatches, most_parts, parts_of
from partitioner.planning.options import Progress, default_warmup
from partitioner.planning.possible_mode import in_possible_mode
from partitioner.planning.predicted import predicted_figures
from partitioner.planning.remeasure import Refinement, refine_split
from partitioner.planning.request import PlanRequest
from partitioner.planning.rows_apart import RowsApart
from partitioner.search.problem import Problem
from partitioner.search.solver import Solver

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
        advices: What was measured of each candidate; None for those that are exact, and where no sampler is known.
        passed_over: Why quality prefers the chosen one to each candidate; None where that has other reasons.
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
    advices: tuple[Advice | None, ...] = ()
    passed_over: tuple[PassedOver | None, ...] = ()


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
    options, model, advisor, source = request.options, request.costs, request.advisor, request.denoiser
    branchings, step = request.branchings, request.step
    most = most_parts(model)
    parts = parts_of(branchings, len(request.fleet), step.counts, most) if source.divides_unasked else set()
    with clock.measure("trace"):
        graphs = source.trace({step.rows, *parts, *(rows for b in branchings for rows in b.rows)}, progress)
        edge_errors = source.edge_errors(graphs[step.rows], progress)
    apart = RowsApart(graphs, step.rows)
    branchings = apart.kept(branchings)
    whole = graphs[step.rows]
    options = in_possible_mode(options, whole, advisor, progress)
    with clock.measure("cost"):
        progress("estimating or measuring the cost of its nodes")
        fleet = with_speeds(limit_memory(request.fleet, options.memory_limit_bytes), whole, model.reference)
        costs = {rows: model(graph) for rows, graph in graphs.items()}
    uneven = list(uneven_branchings(step, fleet, options.branches))
    more = {rows for branching in uneven for rows in branching.rows} - graphs.keys()
    if more:
        with clock.measure("trace"):
            graphs |= source.trace(more, progress)
        with clock.measure("cost"):
            costs |= {rows: model(graphs[rows]) for rows in more}
    uneven = apart.kept(uneven)
    if options.branches is not None and not [*branchings, *uneven]:
        apart.refuse(options.branches)
    if edge_errors is None and advisor is not None:
        edge_errors = advisor.edge_errors(whole)
    with clock.measure("solve"):
        weights = None if edge_errors is None else edge_errors.weights
        solvers = _Solvers(graphs, costs, weights, model.driver_ms)
        sequential = solvers.problem(step.rows, step.calls)
        sequential_ms = step.calls * sequential.total_ms / max(as_devices(fleet).speeds)
        found = find_candidates([*branchings, *uneven], solvers, fleet, options, progress, edge_errors)
        candidates = [in_microbatches(c, solvers, fleet, costs, apart, most) for c in found]
        chosen = choose(candidates, fleet, sequential, sequential_ms, options, advisor)
        shape = (1, len(fleet), 1, "lookahead")
        chains = (c.split for c in candidates if (c.branches, c.components, c.period, c.mode) == shape)
        compared = baselines(whole, sequential, as_devices(fleet), next(chains, None), step.calls)
    own = chosen.branching.rows[0]
    problem, refinement = solvers.problem(own, chosen.branching.calls), None
    if options.refine:
        with clock.measure("refine"):
            refinement = refine_split(graphs[own], costs[own], chosen, fleet, model, edge_errors, progress=progress)
        call_ms = sequential.driver_ms + sequential.work_ms * refinement.scale
        sequential_ms = step.calls * call_ms / max(as_devices(fleet).speeds)
        again = in_microbatches(refinement.candidate, solvers, fleet, costs, apart, most)
        candidates[candidates.index(chosen)] = chosen = again
        problem = refinement.problem
    certificate = None
    if options.prove:
        with clock.measure("prove"):
            progress("proving")
            certificate = _prove(problem, chosen, fleet)
    made = Plan.from_split(
        graphs[own],
        chosen.placed,
        components=chosen.components,
        branches=chosen.branches,
        streams=chosen.branching.streams,
        branch_rows=() if chosen.branching.is_even else chosen.branching.rows,
        calls_per_step=step.calls,
        images=step.images,
        alike=apart.alike(chosen.branching),
        periods=chosen.periods,
        microbatches=chosen.microbatches,
        warmup=options.warmup or default_warmup(chosen.components, chosen.mode),
        mode=chosen.mode,
        predictor=options.predictor or default_predictor(chosen, advisor),
        devices=[fleet[d].name for d in chosen.device_of],
        predicted=predicted_figures(graphs[own], chosen, fleet, sequential_ms, costs[step.rows]),
        cost_source=_cost_source(costs[step.rows], costs[own]),
        versions=_versions(),
        revision=source.revision,
        guidance_style=request.sampling.guidance_style,
        guidance_scale=request.sampling.scale_in_effect,
        driver_modules=[DriverModule(**asdict(module)) for module in source.beside],
    )
    judge = Judge(candidates, options, sequential_ms, advisor)
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
        advices=tuple(judge.advice(c) for c in candidates),
        passed_over=tuple(judge.passed_over(c, chosen) for c in candidates),
    )


def default_predictor(chosen: Candidate, advisor: QualityAdvisor | None) -> PredictorName:
    """The predictor where the user names none.

    Look-ahead reads what belongs to its own step, so ``hold`` takes it as it is. Async mode takes what came closest to
    the sequential output where that was measured, else ``adaptive``, which cannot run away.
    """
    if chosen.mode == "lookahead":
        return "hold"
    return "adaptive" if advisor is None else advisor.async_predictor(chosen.components)


def _prove(problem: Problem, chosen: Candidate, fleet: Fleet) -> Certificate:
    from partitioner.search.certificate import prove

    assert chosen.split is not None
    devices, _ = seats_of(fleet, chosen.branching, chosen.components)
    own = devices if chosen.branching.is_even else devices.reordered([0])
    found, calls = prove(problem, own, chosen.mode, chosen.split), chosen.branching.calls
    return replace(found, step_ms=calls * found.step_ms, bound_ms=calls * found.bound_ms)


def _cost_source(whole: GraphCosts, own: GraphCosts) -> CostSource:
    return CostSource(
        kind="measured" if whole.source == "measured" else "roofline",
        device=as_label(whole.device),
        covered=own.covered,
    )


def _advice(made: Plan, advisor: QualityAdvisor) -> Advice:
    sampling = advisor.sampling

    def speedup(exact_share: float | None) -> float:
        return made.speedup(sampling.steps, sampling.scheduler, sampling.scheduler_config, exact_share)

    return advisor.advise(made.components, made.mode, made.predictor, speedup)


def _versions() -> dict[str, str]:
    found = {"diffusion_partitioner": __version__}
    for package in ("torch", "diffusers"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = as_label(importlib.metadata.version(package))
    return found


class _Solvers:
    """Makes each problem and its solver when it is first asked for.

    Args:
        graphs: By their number of rows.
        costs: Of these graphs.
        weights: Staleness of the graphs' edges, where it was measured.
        driver_ms: The pipeline's own work in a step, which each call bears its share of.
    """

    def __init__(
        self,
        graphs: Mapping[int, TracedGraph],
        costs: Mapping[int, GraphCosts],
        weights: Mapping[tuple[str, str], float] | None,
        driver_ms: float,
    ) -> None:
        self._graphs, self._costs, self._weights, self._driver_ms = graphs, costs, weights, driver_ms
        self._made: dict[tuple[int, int], Solver] = {}

    def __call__(self, rows: int, calls: int) -> Solver:
        if (rows, calls) not in self._made:
            share = self._driver_ms / calls
            problem = build_problem(self._graphs[rows], self._costs[rows], self._weights, driver_ms=share, calls=calls)
            self._made[rows, calls] = Solver(problem)
        return self._made[rows, calls]

    def problem(self, rows: int, calls: int) -> Problem:
        """The problem of a call of so many rows, of which a branch computes so many in a step."""
        return self(rows, calls).problem


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
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
