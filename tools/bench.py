"""bench: a step of this engine, of the unmodified denoiser and of AsyncDiff's policy, by turns on this machine.

python -m tools.bench [--denoiser sd15-like] [--microbatches 2] [--period 2] [--json]

Two ranks, one thread each. The plans, for async and for look-ahead, are made from costs that are measured first; with
--period P, also one in which the first component recomputes every P steps only, ideally 1 + P times as fast. What
look-ahead itself costs is seen beside async mode on look-ahead's own split, for its split is a chain. Each round runs,
one after the other, calls of the unmodified denoiser with one thread and with two, a trajectory of the engine in each
mode, exact calls of the engine, and a trajectory of AsyncDiff's policy (tools.asyncdiff_policy). A figure is the median
over the rounds of the mean time of a call, warm-up calls included; a step is a call after the warm-up. Other work on
the machine spoils it: the spread is printed beside. The memory of the ranks of the async plan is measured afterwards,
by tools.rank_memory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import torch
from torch import nn

from partitioner.costs.components import time_components
from partitioner.costs.lookup import apply_profile, load_profile
from partitioner.costs.measure import measure
from partitioner.costs.node_costs import GraphCosts
from partitioner.errors import PartitionerError
from partitioner.fleet import parse_fleet
from partitioner.graph.export import trace
from partitioner.graph.ir import TracedGraph
from partitioner.plan.fields import PredictorName
from partitioner.plan.plan import Plan
from partitioner.plan.ranks import seat_of
from partitioner.plan.schedule import Schedule
from partitioner.planning.options import Options
from partitioner.planning.planner import plan_graphs
from partitioner.search.mode import Mode
from partitioner.simulator.machine import Link, Machine
from partitioner.simulator.simulate import simulate
from profiles.device_sheets import device_spec
from runtime.engine import Engine
from runtime.errors import EngineError
from runtime.options import EngineOptions
from tools import rank_memory
from tools.asyncdiff_policy import Call, Policy, PolicyRanks, PolicyRun, even_policy, published_policy
from tools.denoisers import DENOISERS, Denoiser

RANKS = 2
PUBLISHED = {"sd15-like": "sd15", "svd-like": "svd"}  # whose modules these denoisers have
FEWER = 5  # one call without lag for every so many of a trajectory: they are slower and all alike
Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What to run. microbatches: of exact calls. period: of multi-rate components; 1: none are run. profile: a saved
    one; None: measure."""

    microbatches: int = 1
    predictor: PredictorName | None = None
    steps: int = 50
    warmup: int = 1
    rounds: int = 5
    period: int = 1
    profile: Path | None = None


def measure_costs(graph: TracedGraph, settings: Settings) -> GraphCosts:
    """Of the nodes, on one CPU thread; measured, or a profile's."""
    profile = measure(graph, "cpu") if settings.profile is None else load_profile(settings.profile)
    return apply_profile(profile, graph)


def make_plan(
    graph: TracedGraph, costs: GraphCosts, settings: Settings, mode: Mode, period: int = 1
) -> tuple[Plan, float]:
    """A plan for two CPU threads, and the mean time of a call in ms that partitioner.simulator.simulate predicts.

    Node costs are refined with whole components.
    """
    options = Options(
        branches=1, mode=mode, warmup=settings.warmup, predictor=settings.predictor, period=period, force=True
    )
    timer = partial(time_components, device="cpu")
    planning = plan_graphs(graph, None, parse_fleet(str(RANKS), "cpu"), lambda _: costs, options, timer=timer)
    plan, placed, link = planning.plan, planning.chosen.placed, device_spec("cpu").link()
    simulation = simulate(
        graph,
        placed,
        {name: cost.ms for name, cost in costs.nodes.items()},
        Machine.uniform(RANKS, Link(link.latency_us * 1e-3, link.duplex_gb_per_s / 2 * link.efficiency)),
        Schedule(plan.components, plan.mode, plan.warmup, plan.periods),
        calls=settings.steps,
        component_ms=timer(graph, placed, RANKS),
    )
    return plan, simulation.trajectory_ms / settings.steps


def policy_of(name: str, denoiser: nn.Module) -> Policy:
    """AsyncDiff's published split of the model whose modules the denoiser has, else an even one."""
    return published_policy(PUBLISHED[name], RANKS) if name in PUBLISHED else even_policy(denoiser, RANKS)


class Trajectory:
    """Denoiser calls as a pipeline makes them: DDIM's timesteps, another latent in every call."""

    def __init__(self, inputs: Mapping[str, Any], roles: Mapping[str, str], steps: int) -> None:
        from diffusers import DDIMScheduler

        self.scheduler = DDIMScheduler()
        self._inputs, self._steps = dict(inputs), steps
        self._latent, self._timestep = (
            next(name for name, role in roles.items() if role == wanted) for wanted in ("latent", "timestep")
        )
        generator = torch.Generator().manual_seed(0)
        self._latents = [torch.randn(inputs[self._latent].shape, generator=generator) for _ in range(steps)]

    def start(self) -> list[Call]:
        """The calls of a new trajectory, which the scheduler shows as begun."""
        self.scheduler.set_timesteps(self._steps)
        like = self._inputs[self._timestep]
        return [
            {**self._inputs, self._latent: latent, self._timestep: torch.full_like(like, float(timestep))}
            for latent, timestep in zip(self._latents, self.scheduler.timesteps, strict=True)
        ]


@dataclass
class Samples:
    """By round: mean time in ms of a call, and of a call after the warm-up; share of it that the rank with most of it
    spends sending, and waiting."""

    call_ms: list[float] = field(default_factory=list)
    step_ms: list[float] = field(default_factory=list)
    bytes_per_call: list[float] = field(default_factory=list)
    communication_share: list[float] = field(default_factory=list)
    wait_share: list[float] = field(default_factory=list)

    @property
    def median_ms(self) -> float:
        return statistics.median(self.call_ms)


class Race:
    """Everything that is measured by turns; its processes live as long as ``stack``."""

    def __init__(
        self,
        stack: ExitStack,
        denoiser: nn.Module,
        trajectory: Trajectory,
        plans: Mapping[str, Plan],
        policy: Policy,
        settings: Settings,
    ) -> None:
        """plans: of "async", of "lookahead" and perhaps of "multirate"."""
        self._denoiser, self._trajectory, self._warmup = denoiser, trajectory, settings.warmup
        scheduler = trajectory.scheduler
        # the policy's ranks get the denoiser as it is now; the engines leave it as it is
        self._policy = stack.enter_context(PolicyRanks(denoiser, policy))
        lagged = EngineOptions(warmup=settings.warmup)
        exact = EngineOptions(exact=True, microbatches=settings.microbatches)
        lagged_ways = [
            *((name, plan, lagged) for name, plan in plans.items()),
            ("async_on_chain", plans["lookahead"], replace(lagged, mode="async")),
        ]
        self._engines = {
            name: stack.enter_context(Engine(denoiser, plan, options, scheduler=lambda: scheduler))
            for name, plan, options in [*lagged_ways, ("exact", plans["async"], exact)]
        }
        self._lagged = tuple(name for name, _, _ in lagged_ways)
        others = ("sequential", "sequential_2_threads", "policy")
        self.samples = {name: Samples() for name in (*others, *self._engines)}
        self.policy_resident_bytes: tuple[int, ...] = ()

    def run_round(self, backwards: bool) -> None:
        """Measure every one once; every other round in reverse order, so that a drift of the machine favours none."""
        turns: list[Callable[[], None]] = [
            lambda: self._run_denoiser("sequential", 1),
            *(partial(self._run_trajectory, name) for name in self._lagged),
            self._run_policy,
            lambda: self._run_engine("exact", self._few()),
            lambda: self._run_denoiser("sequential_2_threads", 2),
        ]
        for turn in reversed(turns) if backwards else turns:
            turn()

    def _few(self) -> list[Call]:
        return self._trajectory.start()[::FEWER]

    def _run_denoiser(self, name: str, threads: int) -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            _times_ms(self._denoiser, self._few()[:1])  # a change of threads costs the first call
            self.samples[name].call_ms.append(statistics.mean(_times_ms(self._denoiser, self._few())))
        finally:
            torch.set_num_threads(before)

    def _run_trajectory(self, name: str) -> None:
        self._run_engine(name, self._trajectory.start())

    def _run_engine(self, name: str, calls: Sequence[Call]) -> None:
        engine, samples = self._engines[name], self.samples[name]
        before = engine.stats.ranks
        times = _times_ms(engine, calls)
        after = engine.stats.ranks
        samples.call_ms.append(statistics.mean(times))
        # look-ahead needs as many exact calls as it has components
        samples.step_ms.append(statistics.mean(times[max(self._warmup, RANKS) :] or times))
        seconds = sum(times) / 1e3
        pairs = list(zip(before, after, strict=True))
        samples.bytes_per_call.append(sum(a.sent_bytes - b.sent_bytes for b, a in pairs) / len(calls))
        samples.communication_share.append(max(a.send_seconds - b.send_seconds for b, a in pairs) / seconds)
        samples.wait_share.append(max(a.wait_seconds - b.wait_seconds for b, a in pairs) / seconds)

    def _run_policy(self) -> None:
        run: PolicyRun = self._policy.run(self._trajectory.start(), self._warmup)
        samples = self.samples["policy"]
        samples.call_ms.append(statistics.mean(run.call_ms))
        samples.communication_share.append(max(run.communication_ms) / sum(run.call_ms))
        samples.bytes_per_call.append(run.sent_bytes[-1])
        self.policy_resident_bytes = run.resident_bytes


def _times_ms(denoise: Callable[..., Any], calls: Sequence[Call]) -> list[float]:
    times = []
    with torch.no_grad():
        for arguments in calls:
            start = time.perf_counter()
            denoise(**arguments)
            times.append(1e3 * (time.perf_counter() - start))
    return times


def bench(name: str, given: Denoiser, settings: Settings, progress: Callable[[str], None]) -> Row:
    """Everything measured and predicted of one denoiser; times in ms, sizes in bytes."""
    denoiser, inputs, roles = given
    torch.set_num_threads(1)
    progress(f"{name}: tracing, measuring and planning")
    graph = trace(denoiser, inputs, roles, model=name)
    costs = measure_costs(graph, settings)
    modes: tuple[Mode, ...] = ("async", "lookahead")
    made = {mode: make_plan(graph, costs, settings, mode) for mode in modes}
    plans: dict[str, Plan] = {mode: plan for mode, (plan, _) in made.items()}
    if settings.period > 1:
        plans["multirate"], _ = make_plan(graph, costs, settings, "async", settings.period)
    plan = plans["async"]
    progress(f"{name}: starting the ranks")
    with ExitStack() as stack:
        trajectory = Trajectory(inputs, roles, settings.steps)
        race = Race(stack, denoiser, trajectory, plans, policy_of(name, denoiser), settings)
        for number in range(settings.rounds):
            race.run_round(backwards=number % 2 == 1)
            progress(f"{name}: round {number + 1} of {settings.rounds}")
    progress(f"{name}: measuring memory")
    with TemporaryDirectory() as folder:
        rank_memory.save(Path(folder), denoiser, plan, inputs)
        held = rank_memory.measure(Path(folder))
    samples = race.samples
    median = {key: found.median_ms for key, found in samples.items()}
    step = {name: statistics.median(found.step_ms) for name, found in samples.items() if found.step_ms}
    multirate: Row = {}
    if settings.period > 1:
        multirate = {
            "period": settings.period,
            "multirate_ms": median["multirate"],
            "multirate_step_ms": step["multirate"],
            "multirate_step_ratio_to_sequential": step["multirate"] / median["sequential"],
            "multirate_ideal_ratio": 1 / (1 + settings.period * (RANKS - 1)),
        }
    return {
        "denoiser": name,
        "ranks": RANKS,
        "predictor": plan.predictor,
        "steps": settings.steps,
        "warmup": settings.warmup,
        "microbatches": settings.microbatches,
        "rounds": settings.rounds,
        "sequential_ms": median["sequential"],
        "sequential_2_threads_ms": median["sequential_2_threads"],
        "async_ms": median["async"],
        "lookahead_ms": median["lookahead"],
        "exact_ms": median["exact"],
        "asyncdiff_policy_ms": median["policy"],
        "spread_ms": {key: max(found.call_ms) - min(found.call_ms) for key, found in samples.items()},
        "async_step_ms": step["async"],
        "lookahead_step_ms": step["lookahead"],
        "ratio_to_sequential": median["async"] / median["sequential"],
        "exact_ratio_to_sequential": median["exact"] / median["sequential"],
        "ratio_to_asyncdiff_policy": median["async"] / median["policy"],
        "async_on_chain_step_ms": step["async_on_chain"],
        "lookahead_step_to_async_step": step["lookahead"] / step["async"],
        "lookahead_step_to_async_on_chain_step": step["lookahead"] / step["async_on_chain"],
        "bytes_per_step": round(statistics.median(samples["async"].bytes_per_call)),
        "predicted_bytes_per_step": plan.predicted.bytes_per_step,
        "asyncdiff_policy_bytes_per_step": round(statistics.median(samples["policy"].bytes_per_call)),
        "communication_share": statistics.median(samples["async"].communication_share),
        "wait_share": statistics.median(samples["async"].wait_share),
        "asyncdiff_policy_communication_share": statistics.median(samples["policy"].communication_share),
        "simulated_ms": made["async"][1],
        "lookahead_simulated_ms": made["lookahead"][1],
        **multirate,
        "memory": [
            {
                "rank": rank,
                **memory,
                "predicted_bytes": predicted,
                "asyncdiff_policy_resident_bytes": theirs,
            }
            for rank, (predicted, memory, theirs) in enumerate(
                zip(predicted_bytes(plan), held, race.policy_resident_bytes, strict=True)
            )
        ],
    }


def predicted_bytes(plan: Plan) -> list[int]:
    """Memory of each rank, as the plan predicts it."""
    seats = [seat_of(rank, plan.components) for rank in range(plan.ranks)]
    return [plan.predicted.components[branch * plan.components + k].memory_bytes for branch, k in seats]


def environment() -> Row:
    """Where this ran."""
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "command": " ".join([Path(sys.executable).name, "-m", "tools.bench", *sys.argv[1:]]),
    }


def table(document: Row) -> str:
    """The results for people."""
    lines = []
    for row in document["results"]:
        spread = row["spread_ms"]

        def line(label: str, key: str, name: str, row: Row = row, spread: Row = spread) -> str:
            ratio = row[key] / row["sequential_ms"]
            return f"  {label:<34}{row[key]:>9.1f} ms  {ratio:>6.3f}  (spread {spread[name]:.1f} ms)"

        lines += [
            f"{row['denoiser']}: {row['ranks']} ranks, {row['predictor']}, {row['steps']} steps, warm-up "
            f"{row['warmup']}, {row['rounds']} rounds; ratios to one thread",
            line("unmodified, one thread", "sequential_ms", "sequential"),
            line("unmodified, two threads", "sequential_2_threads_ms", "sequential_2_threads"),
            line("engine, async", "async_ms", "async"),
            line("engine, look-ahead", "lookahead_ms", "lookahead"),
            line(f"engine, exact, {row['microbatches']} micro-batches", "exact_ms", "exact"),
            line("AsyncDiff's policy", "asyncdiff_policy_ms", "policy"),
            f"  after the warm-up: async {row['async_step_ms']:.1f} ms, look-ahead {row['lookahead_step_ms']:.1f} ms "
            f"({row['lookahead_step_to_async_step']:.3f}), async on look-ahead's split "
            f"{row['async_on_chain_step_ms']:.1f} ms ({row['lookahead_step_to_async_on_chain_step']:.3f})",
            f"  engine to AsyncDiff's policy: time {row['ratio_to_asyncdiff_policy']:.3f}, bytes "
            f"{row['bytes_per_step'] / row['asyncdiff_policy_bytes_per_step']:.3f} ({row['bytes_per_step'] / 1e6:.2f} "
            f"of {row['asyncdiff_policy_bytes_per_step'] / 1e6:.2f} MB per step)",
            f"  engine: sends for {row['communication_share']:.1%} of a step, waits for {row['wait_share']:.1%}; "
            f"policy: in broadcasts for {row['asyncdiff_policy_communication_share']:.1%}",
            f"  simulated: async {row['simulated_ms']:.1f} ms, look-ahead {row['lookahead_simulated_ms']:.1f} ms",
        ]
        if "period" in row:
            lines += [
                line(f"engine, period {row['period']}", "multirate_ms", "multirate"),
                f"  after the warm-up: period {row['period']} {row['multirate_step_ms']:.1f} ms, "
                f"{row['multirate_step_ratio_to_sequential']:.3f} (ideal {row['multirate_ideal_ratio']:.3f})",
            ]
        for rank in row["memory"]:
            started, predicted = rank["started_bytes"], rank["predicted_bytes"]
            grown = rank["resident_bytes"] - started
            lines.append(
                f"  rank {rank['rank']}: {rank['parameter_bytes'] / 1e6:.0f} MB of parameters; process "
                f"{rank['resident_bytes'] / 1e6:.0f} MB, {rank['resident_bytes'] / (started + predicted):.2f} of "
                f"{started / 1e6:.0f} before it had anything + {predicted / 1e6:.0f} predicted (it has grown by "
                f"{grown / 1e6:.0f}, {grown / predicted:.2f} of that); policy's process "
                f"{rank['asyncdiff_policy_resident_bytes'] / 1e6:.0f} MB"
            )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0; 2 for a wrong option; 5 if a rank failed."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--denoiser", action="append", choices=tuple(DENOISERS), help="may be repeated (default: all)")
    parser.add_argument("--microbatches", type=_positive, default=1, help="of the exact calls (default: 1)")
    parser.add_argument("--predictor", choices=get_args(PredictorName), help="default: the planner's choice")
    parser.add_argument("--steps", type=_positive, default=50, help="of a trajectory (default: 50)")
    parser.add_argument("--warmup", type=_positive, default=1, help="exact steps of them (default: 1)")
    parser.add_argument("--rounds", type=_positive, default=5, help="default: 5")
    parser.add_argument("--period", type=_positive, default=1, help="of a multi-rate plan (default: 1, none)")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="costs; for one denoiser (default: measured)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args(arguments)
    settings = Settings(**{each.name: getattr(options, each.name) for each in fields(Settings)})
    try:
        results = [
            bench(name, DENOISERS[name](), settings, lambda text: print(text, file=sys.stderr, flush=True))
            for name in options.denoiser or DENOISERS
        ]
    except PartitionerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (EngineError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 5
    document = {"environment": environment(), "results": results}
    print(json.dumps(document, indent=1) if options.json else table(document))
    return 0


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return number


if __name__ == "__main__":
    sys.exit(main())
