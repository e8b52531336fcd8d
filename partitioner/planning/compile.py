"""partitioner.compile: a plan for any nn.Module."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from partitioner.costs.model import CostModel
from partitioner.errors import UsageError
from partitioner.fleet import Fleet
from partitioner.limits import check_one_of
from partitioner.models.guidance import GUIDANCE_STYLES, GuidanceStyle
from partitioner.plan.plan import Plan
from partitioner.planning.options import DEFAULTS, PlanOptions
from partitioner.planning.planner import plan
from partitioner.planning.request import PlanRequest
from partitioner.planning.sampling_setup import SamplingSetup
from partitioner.planning.sources import FromModule
from profiles.device_sheets import DEFAULT_DEVICE

if TYPE_CHECKING:
    from torch import nn


def compile(
    module: nn.Module,
    example_inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    roles: Mapping[str, Any] | None = None,
    devices: int | str | Fleet = 2,
    *,
    branch_inputs: Mapping[str, Any] | None = None,
    model: str = "custom",
    device: str = DEFAULT_DEVICE,
    costs: CostModel | None = None,
    trajectory: Sequence[Mapping[str, Any]] | None = None,
    guidance_style: GuidanceStyle | None = None,
    options: PlanOptions = DEFAULTS,
) -> Plan:
    """Plan ``module(**example_inputs)`` for some devices; any nn.Module that torch.export can trace.

    Args:
        module: The denoiser. Its weights are not copied, and it is not run.
        example_inputs: Arguments of one call, whose shapes and dtypes count and not their values; or those of several
            consecutive calls, as ``record_calls`` notes them.
        roles: Of each tensor argument, "latent", "timestep", "step" or "prompt"; see ``partitioner.trace``. None: they
            are guessed from several calls, and printed to stderr.
        devices: How many, or as for ``partition-model --devices``, or a Fleet.
        branch_inputs: Arguments of a call of fewer rows, such as one half of the guidance batch. Rows are divided over
            branches unasked only where they are given; with ``PlanOptions(branches=N)`` along the first dimension of
            the latent.
        model: What the plan calls the denoiser.
        device: The data sheet that costs are estimated from.
        costs: Costs from elsewhere, such as ``CostModel("cpu", live="cpu")``, which measures; ``device`` is not used
            then.
        trajectory: Arguments of consecutive calls of a real trajectory: staleness is measured on them with the module's
            weights (32 backward passes a call) instead of estimated from the graph.
        guidance_style: How guidance is done; "two-calls" where a step calls the module once for each half, "batch"
            where ``example_inputs`` hold both. None: a step calls it as often as several example calls show, or once.
        options: What else to ask for.

    Returns:
        The plan; ``plan.save(path)`` writes its file.

    Raises:
        TraceError: The module cannot be traced.
        UsageError: An argument is wrong.
        InfeasibleError: Nothing fits the devices, or only what is slower than one of them.

    >>> import torch
    >>> chain = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(4))).eval()
    >>> plan = compile(chain, {"input": torch.zeros(1, 8)}, {"input": "latent"}, 2, options=PlanOptions(force=True))
    >>> plan.components, plan.mode, list(plan.placement.values())  # the driver has work of its own besides
    (2, 'lookahead', [0, 0, 0, 1])
    """
    check_one_of("guidance_style", guidance_style, (None, *GUIDANCE_STYLES))
    several = [example_inputs] if isinstance(example_inputs, Mapping) else list(example_inputs)
    if roles is None:
        from partitioner.models.guess_roles import guess_roles

        example, roles, guessed, calls = guess_roles(module, several)
        print(f"partitioner.compile: guessed from {len(several)} calls: {guessed}", file=sys.stderr)
    else:
        example, calls = dict(several[0]), 1
    if guidance_style == "two-calls":
        calls = max(calls, 2)
    source = FromModule(module, example, roles, model, branch_inputs, trajectory, calls)
    if guidance_style == "batch" and source.step.rows % 2:
        raise UsageError(f"guidance_style is batch, and a call of {source.step.rows} rows holds no two halves")
    sampling = SamplingSetup(guidance_style=guidance_style)
    return plan(PlanRequest(source, devices, costs or CostModel(device), options, sampling)).plan
