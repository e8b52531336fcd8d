"""measure_drift: the error that one-step lag causes on each edge of a user's denoiser."""

from __future__ import annotations

from typing import Any

from torch import nn

from partitioner.graph.arguments import bind_arguments
from partitioner.graph.export import trace
from partitioner.models.spec import live_spec
from partitioner.staleness.measured import measure_module
from profiles.quality_profile import MeasuredDrift
from runtime.denoiser import denoiser_name
from tools.quality.measured_pipeline import Subject
from tools.quality.samplers import Case

DRIFT_CALLS, DRIFT_PROBES, DRIFT_PARTS = 8, 16, 8  # calls of a trajectory, probes of each, numbers kept of an edge


def measure_drift(subject: Subject, case: Case) -> MeasuredDrift:
    """What one-step lag costs, edge by edge, in some steps of one exact trajectory of the subject's first sample."""
    denoiser = getattr(subject.pipe, denoiser_name(subject.pipe))
    calls: list[dict[str, Any]] = []

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = bind_arguments(module, args, kwargs)
        calls.append({name: value for name, value in given.items() if value is not None})

    subject.use(case)
    with denoiser.register_forward_pre_hook(keep, with_kwargs=True):
        subject.generate(case.steps, samples=1)
    first = min(4, len(calls) - 2)  # as after a warm-up
    some = calls[first : first + DRIFT_CALLS]
    graph = trace(denoiser, some[0], live_spec(denoiser, subject.pipe).roles, model=subject.name)
    drift = measure_module(denoiser, graph, some, probes=DRIFT_PROBES)
    return MeasuredDrift(
        denoiser=subject.name,
        edges=tuple((graph.node_by_name[u].key, graph.node_by_name[v].key) for u, v in drift.edges),
        sketches=tuple(tuple(float(f"{x:.5g}") for x in row) for row in drift.condensed(DRIFT_PARTS).tolist()),
    )
