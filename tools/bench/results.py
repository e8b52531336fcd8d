"""bench: everything that is measured and predicted of one denoiser."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from partitioner.graph.export import trace
from partitioner.plan.plan import Plan
from partitioner.plan.ranks import seat_of
from partitioner.search.mode import Mode
from tools.bench import rank_memory
from tools.bench.asyncdiff_policy import policy_of
from tools.bench.denoiser_calls import DenoiserCalls
from tools.bench.plans import make_plan, measure_costs
from tools.bench.rounds import BenchRounds
from tools.bench.settings import RANKS, BenchSettings
from tools.denoisers import Denoiser


def bench(name: str, given: Denoiser, settings: BenchSettings, progress: Callable[[str], None]) -> dict[str, Any]:
    """Measure one denoiser and predict the same figures.

    Args:
        name: of the denoiser.
        given: the module, its example inputs and their roles.
        settings: what to run.
        progress: is told what is done next.

    Returns:
        The row of the document: times in ms, sizes in bytes.

    Raises:
        PartitionerError: no plan can be made.
        EngineError: a rank failed.
    """
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
        trajectory = DenoiserCalls(inputs, roles, settings.steps)
        rounds = BenchRounds(stack, denoiser, trajectory, plans, policy_of(name, denoiser), settings)
        for number in range(settings.rounds):
            rounds.run_round(backwards=number % 2 == 1)
            progress(f"{name}: round {number + 1} of {settings.rounds}")
    progress(f"{name}: measuring memory")
    with TemporaryDirectory() as folder:
        rank_memory.save(Path(folder), denoiser, plan, inputs)
        held = rank_memory.measure(Path(folder))
    samples = rounds.samples
    median = {key: found.median_ms for key, found in samples.items()}
    step = {name: statistics.median(found.step_ms) for name, found in samples.items() if found.step_ms}
    multirate: dict[str, Any] = {}
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
                zip(predicted_bytes(plan), held, rounds.policy_resident_bytes, strict=True)
            )
        ],
    }


def predicted_bytes(plan: Plan) -> list[int]:
    """Memory of each rank that the plan predicts."""
    seats = [seat_of(rank, plan.components) for rank in range(plan.ranks)]
    return [plan.predicted.components[branch * plan.components + k].memory_bytes for branch, k in seats]
