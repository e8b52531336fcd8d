"""parallelize: runs the denoiser of a diffusers pipeline on several devices."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from partitioner.fleet import MAX_DEVICES
from partitioner.graph.torch_private.compiled import uncompiled
from partitioner.limits import check_whole
from runtime.denoiser import Takeover, claimed, plain_denoiser
from runtime.device_choice import choose_places
from runtime.devices.names import device_names
from runtime.engine import Engine, PlannedDenoiser
from runtime.errors import InputError, PlanMismatch
from runtime.live_plans import Plans, named_plans
from runtime.moved_denoisers import on_cpu_meanwhile
from runtime.offloaded_parts import check_not_offloaded, offloaded_parts
from runtime.options import EngineOptions
from runtime.second_denoisers import counted, second_denoisers
from runtime.torchrun import join


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
        devices, options = choose_places(
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
