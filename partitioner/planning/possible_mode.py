"""in_possible_mode: async mode where nothing could be foreseen."""

from __future__ import annotations

from dataclasses import replace

from partitioner.graph.ir import TracedGraph
from partitioner.graph.nodes import Role
from partitioner.planning.expected_quality import QualityAdvisor
from partitioner.planning.options import PlanOptions, Progress


def in_possible_mode(
    options: PlanOptions, graph: TracedGraph, advisor: QualityAdvisor | None, progress: Progress
) -> PlanOptions:
    """The options, in async mode unless one is asked for, where inputs are new at every step or the sampler's later
    latents cannot be predicted: look-ahead has nothing to compute on then.

    Args:
        options: What the user asks for.
        graph: Of a whole call.
        advisor: Knows the sampler; None: nobody does.
        progress: Called with a sentence that says why.
    """
    if options.mode is not None:
        return options
    new = [item.name for item in graph.inputs if item.role is Role.STEP]
    refusal = None if advisor is None else advisor.sampling.refusal
    if new:
        progress(f"async mode only: {', '.join(new[:3])}{', …' if len(new) > 3 else ''} are new at every step")
    elif refusal is not None:
        progress(f"async mode only: the sampler's later latents cannot be predicted: {refusal}")
    return replace(options, mode="async") if new or refusal is not None else options
