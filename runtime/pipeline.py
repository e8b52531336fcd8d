"""parallelize: runs the denoiser of a diffusers pipeline on several devices."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from partitioner.fleet import MAX_DEVICES
from partitioner.graph.torch_private.compiled import uncompiled
from partitioner.limits import check_whole
from partitioner.plan.pipeline_plans import PipelinePlans, load_plans
from partitioner.plan.plan import Plan
from partitioner.planning.options import DEFAULTS, PlanOptions
from runtime.denoiser import Takeover, check_free, claimed, denoiser_name, may_be_denoisers, plain_denoiser
from runtime.devices.names import device_names
from runtime.devices.places import with_index
from runtime.engine import Engine, PlannedDenoiser
from runtime.errors import InputError, PlanMismatch
from runtime.moved_denoisers import on_cpu_meanwhile
from runtime.offloaded_parts import check_not_offloaded, offloaded_parts
from runtime.options import EngineOptions
from runtime.second_denoisers import counted, second_denoisers
from runtime.torchrun import join, launched
from runtime.transport.weights import check_in_memory

if TYPE_CHECKING:
    from partitioner.models.spec import ModelSpec
    from partitioner.planning.request import PlanRequest

PlanOrFile = Plan | str | os.PathLike[str]
Plans = PlanOrFile | PipelinePlans | Mapping[str, PlanOrFile]

logger = logging.getLogger("runtime")


@contextmanager
def parallelize(
    pipe: Any,
    plan: Plans | None = None,
    options: EngineOptions | None = None,
    *,
    devices: Sequence[str] | int | None = None,
    sizes: Mapping[str, Any] | None = None,
    call: Mapping[str, Any] | None = None,
    offload: bool = False,
    **overrides: Any,
) -> Iterator[Engine]:
    """Run a pipeline's denoiser by a plan inside a ``with`` block; its end gives the denoiser back and ends the ranks.

    Args:
        pipe: a diffusers pipeline with a ``unet`` or a ``transformer``.
        plan: a Plan, a plan file, or None to make a plan now for ``devices``, or one for each of the pipeline's
            denoisers. Further denoisers of the same class, such as Wan 2.2's transformer_2, are run by a Plan too. Or
            a plan for each denoiser by its name in the pipeline, as PipelinePlans (which a plan file may hold) or a
            mapping; those that are left out are the pipeline's to run.
        options: how to run the plan.
        devices: one per rank, such as ["cuda:0", "cuda:1"], or how many. Default: as many as the plan has ranks; cuda
            devices in order, beginning with the pipeline's, if it is on one, else cpu.
        sizes: what to make a plan for, as keyword arguments of ``partitioner.models.model_spec``: height, width,
            frames, batch, guidance, guidance_style.
        call: what the pipeline will be called with, for a plan made now: arguments that cannot be guessed, such as
            {"image_embeds": embeds}. How it then calls its denoiser is found by running a copy without weights.
        offload: have the pipeline's other parts (text encoders, the autoencoder) on rank 0's GPU only while they are
            used, one at a time, and on the CPU otherwise.
        overrides: single fields of EngineOptions, such as exact=True.

    Yields:
        The engine, whose ``stats`` say what was run.

    Raises:
        PlanError: the plan file is not valid.
        PlanMismatch: the plan does not fit the pipeline's denoiser or the devices.
        InputError: the pipeline has no denoiser, or one that is in another such block, or is offloaded whole, the
            options contradict each other, or a device is none.
        StartupError: a rank did not start. Whatever is raised, the pipeline is as it was.

    >>> with parallelize(pipe, devices=2) as engine:  # doctest: +SKIP
    ...     image = pipe("a lighthouse at dusk").images[0]
    """
    options = replace(options or EngineOptions(), **overrides)
    if isinstance(devices, int):
        check_whole("devices", devices, 1, MAX_DEVICES, InputError)
    elif devices is not None:
        devices = device_names(devices)
    check_not_offloaded(pipe)
    if options.transport == "processes":
        join(options.startup_timeout_s)
    with ExitStack() as stack:
        plans = named_plans(pipe, plan, devices, sizes or {}, call)
        names = list(plans)
        seconds = second_denoisers(pipe, uncompiled(getattr(pipe, names[0])))
        denoisers: dict[str, PlannedDenoiser] = {}
        takeovers: dict[str, Takeover] = {}
        for name in names:
            stack.enter_context(claimed(uncompiled(getattr(pipe, name))))
            denoiser = stack.enter_context(plain_denoiser(pipe, name))
            takeovers[name] = Takeover(denoiser)
            denoisers[name] = PlannedDenoiser(denoiser, plans[name], takeovers[name].bare)
        planned = list(denoisers.values())
        first = denoisers.pop(names[0])
        if plan is not None and isinstance(devices, int) and devices != first.plan.ranks:
            raise PlanMismatch(f"devices is {devices}, and the plan is for {first.plan.ranks}; leave devices out")
        devices, options = _places(
            first.denoiser, first.plan, devices, options, transport_is_given="transport" in overrides
        )
        stack.enter_context(on_cpu_meanwhile(pipe, [denoiser.denoiser for denoiser in planned], devices))
        if offload:
            stack.enter_context(offloaded_parts(pipe, plans, devices))
        engine = stack.enter_context(
            Engine(
                first.denoiser,
                first.plan,
                options,
                devices=devices,
                scheduler=partial(getattr, pipe, "scheduler", None),
                traced=first.traced,
                others=denoisers,
            )
        )
        for name, takeover in takeovers.items():
            stack.enter_context(takeover.by(engine.others.get(name, engine)))
        stack.enter_context(counted(seconds, names, engine.pass_by))
        try:
            yield engine
        except GeneratorExit:
            if not sys.is_finalizing():
                # `engine = parallelize(...).__enter__()` keeps no block, and all calls would go without the engine
                kind = ResourceWarning if engine.was_called else RuntimeWarning
                warnings.warn(
                    "a parallelize block was thrown away before its end, and the denoiser runs without ranks again: "
                    "use parallelize in a with statement, or keep what it returns as long as the engine",
                    kind,
                    stacklevel=2,
                )
            raise


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


def _places(
    denoiser: nn.Module,
    plan: Plan,
    devices: Sequence[str] | int | None,
    options: EngineOptions,
    *,
    transport_is_given: bool,
) -> tuple[Sequence[str], EngineOptions]:
    """The device of each rank, and the options with the transport that ranks on such devices need.

    Raises:
        InputError: ranks on GPUs were asked for under torchrun.
        PlanMismatch: this machine has too few GPUs.
    """
    if devices is None or isinstance(devices, int):
        devices = default_devices(denoiser, plan.ranks)
    if any(device.startswith("cuda") for device in devices) and not transport_is_given:
        if launched():
            raise InputError(
                "under torchrun ranks on GPUs send each other everything through the hosts' memory; leave torchrun out "
                'for the GPUs of one machine, or keep the pipeline on cpu, or ask for transport="processes"'
            )
        shared = len({with_index(device) for device in devices}) < len(devices)
        # processes take turns on a GPU that they share, threads do not
        options = replace(options, transport="threads" if shared or options.green_contexts else "processes")
    return devices, options


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
    return plan(_request(pipe, denoiser, live_spec(denoiser, pipe, **sizes, call=call), devices, options)).plan


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
        key: _request(pipe, uncompiled(getattr(pipe, name)), spec, devices, options)
        for key, (name, spec) in made.items()
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
    pipe: Any, denoiser: nn.Module, spec: ModelSpec, devices: Sequence[str] | int | None, options: PlanOptions
) -> PlanRequest:
    """What to ask the planner for, for one of a pipeline's denoisers."""
    from partitioner.costs.model import choose_cost_model
    from partitioner.planning.expected_quality import SamplingSetup
    from partitioner.planning.request import PlanRequest
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


def default_devices(denoiser: nn.Module, ranks: int) -> list[str]:
    """One device per rank: the cuda devices in order, beginning with the denoiser's if it is on one, else its own.

    Under torchrun each rank has the GPU of its LOCAL_RANK, on its machine; "cuda" stands for it.

    Raises:
        PlanMismatch: this machine has fewer cuda devices than there are ranks; or, under torchrun, the denoiser is on
            another one than rank 0's.
    """
    first = next(denoiser.parameters()).device
    if first.type != "cuda":
        return [first.type] * ranks
    if launched():
        own = int(os.environ.get("LOCAL_RANK", "0"))
        if first.index != own:
            raise PlanMismatch(
                f"the pipeline is on {first}, and under torchrun this process, rank 0, has cuda:{own} (LOCAL_RANK); "
                f'move the pipeline there with pipe.to("cuda:{own}"), or name the devices'
            )
        return ["cuda"] * ranks
    count = torch.cuda.device_count()
    if count < ranks:
        raise PlanMismatch(
            f"the plan needs {ranks} devices, this machine has {count} cuda devices; make a plan with --devices "
            f"{count}, or name one device several times with devices=[...]"
        )
    return [f"cuda:{(first.index + rank) % count}" for rank in range(ranks)]
