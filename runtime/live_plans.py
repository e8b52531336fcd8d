"""The plans that a pipeline in memory is run by: those that it is given, or made for it as it is."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from partitioner.graph.torch_private.compiled import uncompiled
from partitioner.plan.pipeline_plans import PipelinePlans, load_plans
from partitioner.plan.plan import Plan
from partitioner.planning.options import DEFAULTS, PlanOptions
from runtime.denoiser import Takeover, check_free, denoiser_name, may_be_denoisers
from runtime.errors import InputError
from runtime.second_denoisers import second_denoisers
from runtime.transport.in_memory import check_in_memory

if TYPE_CHECKING:
    from partitioner.models.spec import ModelSpec
    from partitioner.planning.request import PlanRequest

PlanOrFile = Plan | str | os.PathLike[str]
Plans = PlanOrFile | PipelinePlans | Mapping[str, PlanOrFile]

logger = logging.getLogger("runtime")


def named_plans(
    pipe: Any,
    plan: Plans | None,
    devices: Sequence[str] | int | None,
    sizes: Mapping[str, Any],
    call: Mapping[str, Any] | None,
) -> dict[str, Plan]:
    """The plan of each denoiser, by its name in the pipeline; denoisers of one make share one.

    Raises:
        InputError: a name is none of a denoiser that no engine computes for, or there is no plan.
    """
    if isinstance(plan, (str, os.PathLike)):
        plan = load_plans(plan)
    if isinstance(plan, PipelinePlans):
        plan = plan.plans
    if isinstance(plan, Mapping):
        if not plan:
            raise InputError("an empty mapping of plans; expected a plan for each denoiser by its name in the pipeline")
        for name in plan:
            check_free(pipe, name)
        return {name: own if isinstance(own, Plan) else Plan.load(own) for name, own in plan.items()}
    if plan is not None:
        name = denoiser_name(pipe, plan.class_name)
        check_free(pipe, name)
        return dict.fromkeys((name, *second_denoisers(pipe, uncompiled(getattr(pipe, name)))), plan)
    for name in may_be_denoisers(pipe):
        check_free(pipe, name)
    return plans_for(pipe, devices, sizes, call=call)


def plan_for(
    pipe: Any,
    devices: Sequence[str] | int | None,
    sizes: Mapping[str, Any],
    options: PlanOptions = DEFAULTS,
    *,
    call: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> Plan:
    """A plan for a pipeline in memory, as it is: what was done to its denoiser (LoRA, fused layers, hooks) is planned.

    Costs are measured on the denoiser's GPU, or estimated for a CPU where it is on one.

    Args:
        pipe: The pipeline, with its denoiser and sampler.
        devices: Names, or how many.
        sizes: What it is made for; see parallelize.
        options: What else to ask for.
        call: Arguments that the pipeline will be called with; see parallelize.
        name: Of the denoiser in the pipeline. Default: its unet or transformer.

    Raises:
        InputError: ``devices`` is None.
        PlanMismatch: The denoiser's parameters are not in memory.
        TraceError: The denoiser cannot be traced as it is.
        UsageError: The pipeline's sizes or the number of devices make no sense.
        InfeasibleError: No plan over so many devices is faster than one.
    """
    from partitioner.models.find_spec import live_spec
    from partitioner.planning.planner import plan

    denoiser = uncompiled(getattr(pipe, name or denoiser_name(pipe)))
    return plan(_request(denoiser, live_spec(denoiser, pipe, **sizes, call=call), devices, options)).plan


def plans_for(
    pipe: Any,
    devices: Sequence[str] | int | None,
    sizes: Mapping[str, Any],
    options: PlanOptions = DEFAULTS,
    *,
    call: Mapping[str, Any] | None = None,
) -> dict[str, Plan]:
    """A plan for each denoiser of a pipeline in memory, by the pipeline's names; all have as many ranks.

    Args:
        pipe: The pipeline; this and the following as for plan_for.
        devices: Names, or how many.
        sizes: What they are made for.
        options: What else to ask for.
        call: Arguments that the pipeline will be called with.

    Raises:
        InputError, PlanMismatch, TraceError, UsageError, InfeasibleError: As plan_for.
    """
    from partitioner.models.pipeline_specs import are_alike, live_specs
    from partitioner.planning.planner import plan
    from partitioner.planning.together import plan_together

    specs = live_specs(pipe, **sizes, call=call)
    first = uncompiled(getattr(pipe, next(iter(specs))))
    made = {id(spec): (name, spec) for name, spec in reversed(specs.items())}
    asked = {
        key: _request(uncompiled(getattr(pipe, name)), spec, devices, options) for key, (name, spec) in made.items()
    }
    if len(asked) == 1:
        plans = dict.fromkeys(specs, plan(next(iter(asked.values()))).plan)
    else:
        requests = {name: asked[id(spec)] for name, spec in specs.items()}
        plans = {name: planning.plan for name, planning in plan_together(requests).items()}
    for name, module in second_denoisers(pipe, first).items():
        if name not in plans and are_alike(first, module):
            plans[name] = next(iter(plans.values()))
    return plans


def _request(
    denoiser: nn.Module, spec: ModelSpec, devices: Sequence[str] | int | None, options: PlanOptions
) -> PlanRequest:
    """What to ask the planner for, for one of a pipeline's denoisers."""
    from partitioner.costs.model import choose_cost_model
    from partitioner.planning.request import PlanRequest
    from partitioner.planning.sampling_setup import SamplingSetup
    from partitioner.planning.sources import FromSpec
    from profiles.quality_profile import QualityProfile

    if devices is None:
        raise InputError("without a plan, say for how many devices to make one: parallelize(pipe, devices=2)")
    check_in_memory(denoiser)
    live = str(next(denoiser.parameters()).device)
    if spec.recorded is not None:
        logger.info(spec.recorded)
    return PlanRequest(
        FromSpec(spec, Takeover(denoiser).bare()),
        devices if isinstance(devices, int) else len(devices),
        choose_cost_model(*(None, "cpu") if live == "cpu" else (live, None)),
        options,
        sampling=SamplingSetup.of(spec),
        quality=QualityProfile.load(),
    )
