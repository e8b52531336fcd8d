"""What reading last step's values really does to a denoiser's outputs: computed, not estimated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from partitioner.graph.ir import TracedGraph
from partitioner.plan.placement import NamePlacement
from partitioner.staleness.measured import TensorsByPath, evaluate_graph


def lagged_outputs(
    graph: TracedGraph, parameters: TensorsByPath, trajectory: Sequence[TensorsByPath], placement: NamePlacement
) -> Iterator[torch.Tensor]:
    """What one-step lag really gives: the first result of each step but the first, which is exact.

    In each of these a node reads what other components made in the step before, lag and all. Inputs are as given: that
    the sampler would go on from the wrong outputs is left out.
    """
    with torch.no_grad():
        before = evaluate_graph(graph, parameters, trajectory[0])
        for inputs in trajectory[1:]:

            def stale(reader: str, name: str, value: Any, before: Mapping[str, Any] = before) -> Any:
                apart = reader in placement and placement.get(name, placement[reader]) != placement[reader]
                return before[name] if apart else value

            before = evaluate_graph(graph, parameters, inputs, stale)
            yield before[graph.result_values[0]]
