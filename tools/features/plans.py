"""Fresh plans for the denoiser that a pipeline has now, of the size that the matrix calls it with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from partitioner.costs.model import CostModel
from partitioner.graph.torch_private.compiled import uncompiled
from partitioner.models.find_spec import live_spec
from partitioner.models.inputs import ExampleTensor
from partitioner.plan.plan import Plan
from partitioner.planning.options import PlanOptions
from partitioner.planning.planner import plan
from partitioner.planning.request import PlanRequest
from partitioner.planning.sources import FromSpec
from runtime.denoiser import Takeover, denoiser_name
from runtime.transport.in_memory import check_in_memory
from tools.features.subject import Subject
from tools.small_pipelines import call


def fresh_plan(subject: Subject, pipe: Any) -> Plan:
    """A plan of one branch and two components, for a pipeline as it is now.

    As ``runtime.live_plans.plan_for`` makes it, but of one branch, since halves of a batch round differently than the
    whole, and of the size of the calls, so that nothing is traced once more.

    Args:
        subject: whose denoiser it is.
        pipe: the pipeline that is called.
    """
    shapes = subject.store.once(("shapes", subject.name), lambda: _shapes(Subject(subject.name, subject.store)))
    denoiser = uncompiled(getattr(pipe, denoiser_name(pipe)))
    check_in_memory(denoiser)
    spec = live_spec(denoiser, pipe)
    source = FromSpec(replace(spec, inputs=_with_shapes(spec.inputs, shapes)), Takeover(denoiser).bare())
    return plan(PlanRequest(source, 2, CostModel("cpu"), options=PlanOptions(branches=1, force=True))).plan


def _shapes(subject: Subject) -> dict[str, Any]:
    """The tensors of a plain call, by argument."""
    seen: list[dict[str, Any]] = []

    def note(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append({**dict(zip(("sample", "timestep"), args, strict=False)), **kwargs})

    hook = subject.denoiser.register_forward_pre_hook(note, with_kwargs=True)
    call(subject.pipe, steps=1)
    hook.remove()
    return seen[0]


def _with_shapes(inputs: Any, given: Any) -> Any:
    """A spec's inputs with the shapes of a call's arguments."""
    if isinstance(inputs, ExampleTensor):
        return replace(inputs, shape=tuple(given.shape)) if isinstance(given, torch.Tensor) else inputs
    if isinstance(inputs, dict):
        return {name: _with_shapes(item, (given or {}).get(name)) for name, item in inputs.items()}
    return inputs
